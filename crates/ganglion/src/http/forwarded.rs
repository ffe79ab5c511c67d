//! What trusted proxies say of their client: its address, and whether it speaks TLS.
//!
//! A proxy adds to what its client sent, on the right: what stands there is the proxy's word, and
//! whatever stands before it may be anything. So headers are read from the right, as bytes.

use std::net::{IpAddr, Ipv6Addr};

use http::header;

use super::connection::Connection;

const X_FORWARDED_FOR: &str = "x-forwarded-for";

impl Connection {
    /// Whether the client speaks TLS: to this neuron, or to a trusted proxy that says so. One that
    /// says it by itself can only mislead itself, since nothing but the URLs that it is given depend
    /// on it.
    pub(super) fn is_safe(&self, headers: &http::HeaderMap) -> bool {
        if !self.shared.trusted_proxies.iter().any(|net| net.contains(self.peer)) {
            return self.is_tls;
        }
        match forwarded_protocol(headers, self.reads_forwarded()) {
            Some(protocol) => protocol.eq_ignore_ascii_case(b"https"),
            None => self.is_tls,
        }
    }

    /// The client's address: the peer's, or what a trusted proxy says of it, if it says anything. Where
    /// that cannot be read it tells why, and nobody is taken for the proxy itself.
    pub(super) fn address<B>(&self, request: &hyper::Request<B>) -> Result<IpAddr, String> {
        let trusted = &self.shared.trusted_proxies;
        let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(address));
        if trusted.is_empty() || !is_trusted(self.peer) {
            return Ok(self.peer);
        }
        let (headers, is_forwarded) = (request.headers(), self.reads_forwarded());
        // The nearest hop is last; the first one from there that no proxy of ours made is the client.
        let mut address = self.peer;
        for hop in from_the_right(headers, is_forwarded) {
            let (name, read) = match is_forwarded {
                true => ("Forwarded", parameter(hop, b"for").and_then(|node| parse_hop(&node))),
                false => ("X-Forwarded-For", parse_hop(hop)),
            };
            let why = || format!("`{name}` names no address where the client's should be");
            address = read.ok_or_else(why)?;
            if !is_trusted(address) {
                break;
            }
        }
        Ok(address)
    }

    fn reads_forwarded(&self) -> bool {
        self.shared.config.listen.forwarded_header == "forwarded"
    }
}

/// The elements of a forwarding header, the nearest hop's first.
fn from_the_right(headers: &http::HeaderMap, is_forwarded: bool) -> impl Iterator<Item = &[u8]> {
    let name = if is_forwarded { header::FORWARDED.as_str() } else { X_FORWARDED_FOR };
    let lines: Vec<&[u8]> = headers.get_all(name).iter().map(|value| value.as_bytes()).collect();
    lines.into_iter().rev().flat_map(move |line| {
        let mut rest = Some(line);
        std::iter::from_fn(move || {
            let line = rest?;
            let comma = if is_forwarded {
                last_outside_quotes(line, b',')
            } else {
                line.iter().rposition(|&byte| byte == b',')
            };
            rest = comma.map(|at| &line[..at]);
            Some(line[comma.map_or(0, |at| at + 1)..].trim_ascii())
        })
    })
}

/// The protocol that the proxy nearest to the client names.
fn forwarded_protocol(headers: &http::HeaderMap, is_forwarded: bool) -> Option<Vec<u8>> {
    if is_forwarded {
        let protocols =
            from_the_right(headers, true).filter_map(|element| parameter(element, b"proto"));
        return protocols.last();
    }
    let first = headers.get("x-forwarded-proto")?.as_bytes().split(|&byte| byte == b',').next()?;
    Some(first.trim_ascii().to_vec())
}

/// Where a byte stands last that is in no quoted string (RFC 9110 §5.6.4), as it is seen from the
/// right: a quote that somebody left open further left hides nothing.
fn last_outside_quotes(text: &[u8], wanted: u8) -> Option<usize> {
    let is_escaped = |at: usize| {
        let backslashes = text[..at].iter().rev().take_while(|&&byte| byte == b'\\').count();
        backslashes % 2 == 1
    };
    let mut is_quoted = false;
    for (at, &byte) in text.iter().enumerate().rev() {
        if byte == b'"' && !(is_quoted && is_escaped(at)) {
            is_quoted = !is_quoted;
        } else if byte == wanted && !is_quoted {
            return Some(at);
        }
    }
    None
}

/// The value of a parameter of an element (RFC 7239 §4), without its quotes; `None` when it is not
/// there or there twice.
fn parameter(element: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let mut found = None;
    let mut rest = Some(element);
    while let Some(text) = rest {
        let semicolon = last_outside_quotes(text, b';');
        rest = semicolon.map(|at| &text[..at]);
        let pair = text[semicolon.map_or(0, |at| at + 1)..].trim_ascii();
        let Some(equals) = pair.iter().position(|&byte| byte == b'=') else { continue };
        if pair[..equals].eq_ignore_ascii_case(name) {
            if found.is_some() {
                return None;
            }
            found = Some(unquoted(&pair[equals + 1..]));
        }
    }
    found
}

fn unquoted(value: &[u8]) -> Vec<u8> {
    let inner = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    let Some(inner) = inner else { return value.to_vec() };
    let mut bytes = inner.iter();
    let unescaped = || match bytes.next()? {
        b'\\' => bytes.next(),
        byte => Some(byte),
    };
    std::iter::from_fn(unescaped).copied().collect()
}

/// An address of a forwarding header: with or without port, IPv6 in brackets.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?;
    if let Ok(address) = hop.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let (address, port) = match hop.strip_prefix('[') {
        Some(rest) => {
            let (inner, port) = rest.split_once(']')?;
            (IpAddr::V6(inner.parse::<Ipv6Addr>().ok()?), port)
        }
        None => {
            let at = hop.find(':')?;
            (hop[..at].parse().ok()?, &hop[at..])
        }
    };
    // RFC 7239 §6: a number, or a word that stands for it.
    let is_port = |port: &str| {
        let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !port.is_empty() && port.bytes().all(is_known)
    };
    let is_whole = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
    is_whole.then(|| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::super::stage::{SYS_SECRET, Stage};
    use super::*;

    fn hops(is_forwarded: bool, lines: &[&[u8]]) -> Vec<Option<String>> {
        let mut headers = http::HeaderMap::new();
        let name = if is_forwarded { "forwarded" } else { X_FORWARDED_FOR };
        for line in lines {
            headers.append(name, HeaderValue::from_bytes(line).expect("a header"));
        }
        let hops = from_the_right(&headers, is_forwarded).map(|hop| {
            let address = match is_forwarded {
                true => parse_hop(&parameter(hop, b"for")?)?,
                false => parse_hop(hop)?,
            };
            Some(address.to_string())
        });
        hops.collect()
    }

    #[test]
    fn what_stands_on_the_right_is_read_whatever_stands_before_it() {
        let nearest = |is_forwarded, line: &[u8]| hops(is_forwarded, &[line])[0].clone();
        for line in [
            &b"203.0.113.9"[..],
            b"\xe9, 203.0.113.9",
            b"\xe9,203.0.113.9:4711 ",
            b"\", 203.0.113.9",
            b", 203.0.113.9",
            b"x, [::ffff:203.0.113.9]:1",
        ] {
            assert_eq!(nearest(false, line).as_deref(), Some("203.0.113.9"), "{line:?}");
        }
        for line in [
            &b"for=203.0.113.9"[..],
            b"for=\"\xe9\", for=203.0.113.9",
            b"for=\"x, for=203.0.113.9",
            b"for=x\", For=\"203.0.113.9:4711\";proto=https",
            b"for=\"\\\", by=\"a,b;for=\\\"c\";for=\"203.0.\\113.9\"",
            b"x, proto=\"h;t\" ; for=\"203.0.113.9:_port\" ;by=\"x,y\"",
            b"for=10.0.0.1 , for=\"[::ffff:203.0.113.9]\"",
        ] {
            assert_eq!(nearest(true, line).as_deref(), Some("203.0.113.9"), "{line:?}");
        }
        let two: [&[u8]; 2] = [b"1.1.1.1, \xe9", b"2.2.2.2, 3.3.3.3"];
        let read = ["3.3.3.3", "2.2.2.2"].map(|hop| Some(hop.to_owned()));
        assert_eq!(hops(false, &two), [&read[..], &[None, Some("1.1.1.1".to_owned())]].concat());
    }

    #[test]
    fn what_cannot_be_read_is_no_address() {
        for hop in ["", "unknown", "_hidden", "1.2.3.4:", "1.2.3.4:a b", "1.2.3.4\u{e9}", "[::1]x"]
        {
            assert_eq!(hops(false, &[hop.as_bytes()]), [None], "{hop}");
            assert_eq!(hops(true, &[format!("for={hop}").as_bytes()]), [None], "{hop}");
        }
        for element in [&b""[..], b"proto=https", b"for=1.2.3.4;for=1.2.3.5", b"for=\"1.2.3.4"] {
            assert_eq!(hops(true, &[element]), [None], "{element:?}");
        }
    }

    /// The address of a stage's own connection is a proxy's here, and so is 10.0.0.1.
    #[tokio::test]
    async fn who_cannot_be_told_from_the_proxy_is_refused() {
        for (name, header, lines) in [
            ("X-Forwarded-For", "x-forwarded-for", ["203.0.113.9", "10.0.0.1", "\u{e9}", "x"]),
            ("Forwarded", "forwarded", ["for=203.0.113.9", "for=10.0.0.1", "for=\"\u{e9}\"", "x"]),
        ] {
            let stage = Stage::new(|config| {
                let proxies = ["192.0.2.1/32", "10.0.0.1/32"];
                config.listen.trusted_proxies = proxies.map(str::to_owned).to_vec();
                config.listen.forwarded_header = header.to_owned();
            });
            let [client, proxy, unread, word] = lines;
            for (line, answer) in [
                (client.to_owned(), "200"),
                (format!("{unread}, {client}, {proxy}"), "200"),
                (format!("{client}, {unread}"), "400"),
                (format!("{client}, {word}, {proxy}"), "400"),
                (format!("{unread}\r\n{header}: {client}"), "200"),
                (format!("{client}\r\n{header}: {unread}"), "400"),
                (String::new(), "400"),
            ] {
                let query = format!("/_conf?ident=$sys&secret={SYS_SECRET}");
                let head = format!("GET {query} HTTP/1.1\r\nhost: a\r\n{header}: {line}\r\n");
                let answered = stage.ask(1, head.as_bytes()).await;
                assert_eq!(answered.split(' ').nth(1), Some(answer), "{line}: {answered}");
                assert_eq!(answered.contains(&format!("`{name}`")), answer == "400", "{answered}");
            }
        }
    }
}
