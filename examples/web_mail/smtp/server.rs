//! Which mail server is meant, and how it is reached.

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use percent_encoding::percent_decode_str;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use url::{Host, Url};

use super::timed::{Timed, time_left};

pub(crate) struct Server {
    url: Url,
    pub(crate) tls: Tls,
    pub(crate) login: Option<Login>,
}

/// When the connection is encrypted.
pub(crate) enum Tls {
    Never,
    IfOffered(Encryption),
    Required(Encryption),
    FromTheStart(Encryption),
}

pub(crate) struct Encryption {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
}

pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl Server {
    /// By smtp://, smtp://…?tls=required, smtp://…?tls=opportunistic or smtps://. No error shows the URL, since there may
    /// be a password in it.
    pub(crate) fn parse(url: &str) -> anyhow::Result<Server> {
        let url = Url::parse(url)?;
        let tls = match (url.scheme(), url.query()) {
            ("smtp", None) => Tls::Never,
            ("smtp", Some("tls=opportunistic")) => Tls::IfOffered(Encryption::to(&url)?),
            ("smtp", Some("tls=required")) => Tls::Required(Encryption::to(&url)?),
            ("smtps", _) => Tls::FromTheStart(Encryption::to(&url)?),
            _ => bail!("neither smtp://server, with ?tls=required or ?tls=opportunistic, nor smtps://server"),
        };
        let decoded = |text| anyhow::Ok(percent_decode_str(text).decode_utf8()?.into_owned());
        let login = match url.password() {
            Some(password) => Some(Login { user: decoded(url.username())?, password: decoded(password)? }),
            None => None,
        };
        Ok(Server { url, tls, login })
    }

    /// Looking up the name takes as long as the machine's resolver lets it.
    pub(crate) fn connect(&self, until: &Rc<Cell<Instant>>) -> io::Result<Timed> {
        let port = match self.tls {
            Tls::Never => 25,
            Tls::IfOffered(_) | Tls::Required(_) => 587,
            Tls::FromTheStart(_) => 465,
        };
        let mut failed = io::Error::new(ErrorKind::NotFound, "the name of the SMTP server has no address");
        for address in self.url.socket_addrs(|| Some(port))? {
            match TcpStream::connect_timeout(&address, time_left(until.get())?) {
                Ok(socket) => {
                    // The end of a mail is sent for itself, and would wait for the server to say that it has the text.
                    socket.set_nodelay(true)?;
                    return Ok(Timed { socket, until: Rc::clone(until) });
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

impl Encryption {
    /// With the certificates that this machine trusts, or those of `SSL_CERT_FILE`.
    fn to(url: &Url) -> anyhow::Result<Encryption> {
        let name = match url.host().context("no host")? {
            Host::Domain(name) => ServerName::try_from(name.to_owned())?,
            Host::Ipv4(address) => IpAddr::from(address).into(),
            Host::Ipv6(address) => IpAddr::from(address).into(),
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
        Ok(Encryption { config, name })
    }
}
