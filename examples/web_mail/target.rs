//! What a request is for: the target of its first line, and its `Host` (RFC 9112, 3.2).

use std::net::Ipv6Addr;

use crate::response::Status;

/// A target. An authority is a name or an address, often with a port.
pub(crate) struct Target<'a> {
    /// Without the query; `*` for the server itself.
    pub(crate) path: &'a str,
    /// As it stands in the target, where it counts rather than that of `Host`.
    pub(crate) authority: Option<&'a str>,
}

impl<'a> Target<'a> {
    pub(crate) fn parse(method: &str, target: &'a str) -> Result<Target<'a>, Status> {
        if target.starts_with('/') || target == "*" && method == "OPTIONS" {
            return Ok(Target { path: without_query(target), authority: None });
        }
        let (scheme, rest) = target.split_once("://").ok_or(Status::BadRequest)?;
        match scheme {
            _ if scheme.eq_ignore_ascii_case("http") => {}
            // It was not sent over TLS, and so is not for here.
            _ if scheme.eq_ignore_ascii_case("https") => return Err(Status::Misdirected),
            _ => return Err(Status::BadRequest),
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.is_empty() {
            return Err(Status::BadRequest);
        }
        let path = if path.starts_with('/') { without_query(path) } else { "/" };
        Ok(Target { path, authority: Some(authority) })
    }
}

fn without_query(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

/// The name or address in an authority. One that says who asks is refused: it is there to look like another.
pub(crate) fn host_of(authority: &str) -> Result<&str, Status> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(Status::BadRequest)?;
            // By which of its networks the client reaches the address is nothing to us.
            let address = address.split('%').next().unwrap_or_default();
            address.parse::<Ipv6Addr>().map_err(|_| Status::BadRequest)?;
            (address, port)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_port =
        port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
    if !is_port || host.contains(['@', '/', '?', '#', '\\', ' ', ',']) {
        return Err(Status::BadRequest);
    }
    Ok(host)
}
