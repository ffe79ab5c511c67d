//! What trusted proxies say of their client: its address, and whether it speaks TLS.

use std::net::IpAddr;

use http::header;

use super::connection::Connection;

impl Connection {
    /// Whether the client speaks TLS: to this neuron, or to a trusted proxy that says so. One that
    /// says it by itself can only mislead itself, since nothing but the URLs that it is given depend
    /// on it.
    pub(super) fn is_safe(&self, headers: &http::HeaderMap) -> bool {
        if !self.shared.trusted_proxies.iter().any(|net| net.contains(self.peer)) {
            return self.is_tls;
        }
        let is_forwarded = self.shared.config.listen.forwarded_header == "forwarded";
        match forwarded_protocols(headers, is_forwarded).next() {
            Some(protocol) => protocol.eq_ignore_ascii_case("https"),
            None => self.is_tls,
        }
    }

    /// The client's address: the peer's, or what a trusted proxy says of it.
    pub(super) fn address<B>(&self, request: &hyper::Request<B>) -> IpAddr {
        let trusted = &self.shared.trusted_proxies;
        let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(address));
        if trusted.is_empty() || !is_trusted(self.peer) {
            return self.peer;
        }
        let headers = request.headers();
        let is_forwarded = self.shared.config.listen.forwarded_header == "forwarded";
        let forwarded = headers.get_all(header::FORWARDED).iter().flat_map(|value| {
            let text = value.to_str().unwrap_or("");
            text.split(',').filter_map(|element| {
                element.split(';').find_map(|pair| {
                    let (name, value) = pair.trim().split_once('=')?;
                    name.eq_ignore_ascii_case("for").then(|| value.trim_matches('"').to_owned())
                })
            })
        });
        let hops: Vec<String> = if is_forwarded {
            forwarded.collect()
        } else {
            let values = headers.get_all("x-forwarded-for").iter();
            let texts = values.flat_map(|value| value.to_str().unwrap_or("").split(','));
            texts.map(|hop| hop.trim().to_owned()).collect()
        };
        // The nearest hop is last; the first one from there that no proxy of ours made is the client.
        let mut address = self.peer;
        for hop in hops.iter().rev() {
            match parse_hop(hop) {
                Some(next) => address = next.to_canonical(),
                None => break,
            }
            if !is_trusted(address) {
                break;
            }
        }
        address
    }
}

/// The protocols that a forwarding header names, the client's first.
fn forwarded_protocols(
    headers: &http::HeaderMap,
    is_forwarded: bool,
) -> impl Iterator<Item = &str> {
    let name = if is_forwarded { "forwarded" } else { "x-forwarded-proto" };
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(move |element| {
        if !is_forwarded {
            return Some(element.trim());
        }
        element.split(';').find_map(|pair| {
            let (name, value) = pair.trim().split_once('=')?;
            name.eq_ignore_ascii_case("proto").then(|| value.trim_matches('"'))
        })
    })
}

/// An address of a forwarding header: with or without port, IPv6 in brackets.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    if let Some(inner) = hop.strip_prefix('[') {
        return inner.split(']').next()?.parse().ok();
    }
    hop.parse().ok().or_else(|| hop.split(':').next()?.parse().ok())
}
