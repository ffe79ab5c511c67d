//! Bodies: read within limits of size, time and room, each at the cost of whoever sends it.

use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use http::header;
use http_body_util::BodyExt as _;
use hyper::body::{self, Body as _};
use neuron::requests::Payer;
use services::principal;
use wire::envelope::Fault;
use wire::errors::Code;

use super::connection::Connection;
use crate::turns::BodyBytes;

impl Connection {
    /// Reads a body, with the count of its bytes, which is to live as long.
    pub(super) async fn read_body(
        &self,
        mut body: body::Incoming,
        headers: &http::HeaderMap,
        address: IpAddr,
    ) -> Result<(Bytes, Option<BodyBytes>), Fault> {
        if body.is_end_stream() {
            return Ok((Bytes::new(), None));
        }
        let limits = &self.shared.config.limits;
        let too_large =
            || Fault::with(Code::TooLarge, format!("a body may have {} bytes here", limits.body.0));
        if body.size_hint().lower() > limits.body.0 as u64 {
            return Err(too_large());
        }
        let mut counted = self.shared.turns.body(self.sender(headers, address).await);
        let overloaded = |of_whom: &str| {
            Fault::with(Code::Overloaded, format!("too many bytes {of_whom} are being received"))
        };
        // It is there for as long as the body is not.
        counted.grow(head_bytes(headers)).map_err(overloaded)?;
        let reading = async {
            let mut first = Bytes::new();
            let mut all = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| {
                    Fault::with(Code::BadRequest, format!("the body ended early: {error}"))
                })?;
                let Ok(data) = frame.into_data() else { continue };
                if first.len() + all.len() + data.len() > limits.body.0 {
                    return Err(too_large());
                }
                counted.grow(data.len()).map_err(overloaded)?;
                // Most bodies come in one piece, which is not copied.
                if first.is_empty() && all.is_empty() {
                    first = data;
                } else {
                    all.extend_from_slice(&std::mem::take(&mut first));
                    all.extend_from_slice(&data);
                }
            }
            Ok(if all.is_empty() { first } else { all.freeze() })
        };
        match tokio::time::timeout(limits.body_time.0, reading).await {
            Ok(read) => Ok((read?, Some(counted))),
            Err(_) => Err(Fault::with(Code::BadRequest, "the body took too long to arrive")),
        }
    }

    /// Who pays for a body: the account of credentials that were proven before, or an address.
    async fn sender(&self, headers: &http::HeaderMap, address: IpAddr) -> Payer {
        let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(header) = header else { return Payer::Address(address) };
        let services = &self.shared.neuron.services;
        match principal::proven_before(services, &self.session, header, address).await {
            Some(caller) => Payer::Account(caller.payer.clone()),
            None => Payer::Address(address),
        }
    }
}

/// What headers weigh, as RFC 9113 §6.5.2 has it.
fn head_bytes(headers: &http::HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::stage::{Stage, address, authorization};
    use super::*;

    #[tokio::test]
    async fn a_head_weighs_while_its_body_does_not_come() {
        let stage = Stage::new(|_| {});
        let mut connection = stage.connect(1);
        let filler = "x".repeat(20_000);
        let head =
            format!("PUT /_data/p HTTP/1.1\r\nhost: a\r\nx: {filler}\r\ncontent-length: 2\r\n\r\n");
        connection.write_all(head.as_bytes()).await.expect("it is taken");
        let weight = "hostaxcontent-length2".len() + filler.len() + 3 * 32;
        while stage.shared.turns.body_bytes() != weight {
            tokio::task::yield_now().await;
        }
        drop(connection);
        while stage.shared.turns.body_bytes() > 0 {
            tokio::task::yield_now().await;
        }
    }

    /// A few addresses that finish no body stop nobody else's.
    #[tokio::test]
    async fn who_has_logged_in_before_can_send_bodies_whatever_strangers_hold() {
        let stage = Stage::new(|_| {});
        let bodies = stage.shared.config.limits.bodies.0;
        let held = [1, 2, 3, 4].map(|from| {
            let mut body = stage.shared.turns.body(Payer::Address(address(from)));
            assert_eq!(body.grow(bodies / 8), Ok(()));
            body
        });
        let body = "{\"k\":\"a\",\"v\":1}";
        let head = |line: &str, length: usize| {
            let credentials = authorization();
            format!("{line} HTTP/1.1\r\nhost: a\r\n{credentials}content-length: {length}\r\n")
        };
        let put = async || {
            let mut connection = stage.connect(9);
            let head = head("PUT /_data/p", body.len());
            let request = format!("{head}connection: close\r\n\r\n{body}");
            connection.write_all(request.as_bytes()).await.expect("it is taken");
            let mut answer = String::new();
            connection.read_to_string(&mut answer).await.expect("an answer");
            answer
        };
        let refused = put().await;
        assert!(refused.contains("of all who have not logged in before"), "{refused}");
        assert!(stage.ask(9, head("GET /_data", 0).as_bytes()).await.contains("\"s\":\"ok\""));
        let written = put().await;
        assert!(written.contains("\"s\":\"ok\""), "{written}");
        drop(held);
    }
}
