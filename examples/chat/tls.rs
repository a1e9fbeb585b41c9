//! The same chat, over TLS.

use std::path::PathBuf;

use backroom::{Certificate, Listener, Pem, Tls, TlsConfig};
use clap::Args;

#[derive(Args)]
pub(crate) struct TlsOptions {
    /// Where to listen for TLS
    #[arg(long)]
    tls_listen: Option<String>,
    /// The certificate for that, in PEM; without it one is made that nobody has signed
    #[arg(long, requires = "key", requires = "tls_listen")]
    cert: Option<PathBuf>,
    /// Its key, in PEM
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
}

impl TlsOptions {
    pub(crate) fn listener(&self) -> anyhow::Result<Option<Listener>> {
        let Some(address) = &self.tls_listen else { return Ok(None) };
        let certificate = match (&self.cert, &self.key) {
            (Some(chain), Some(key)) => Certificate::files(chain, key),
            _ => unsigned()?,
        };
        let tls = Tls::new(TlsConfig::new(certificate))?;
        Ok(Some(Listener::tcp(address.as_str()).tls(&tls)))
    }
}

/// Enough to try it; nobody can tell whose it is.
fn unsigned() -> anyhow::Result<Certificate> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    Ok(Certificate::new(Pem::text(made.cert.pem()), Pem::text(made.signing_key.serialize_pem())))
}
