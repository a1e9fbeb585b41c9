//! Certificates and keys, and who may connect.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, DnsName, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use super::session::Session;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
/// How one in PKCS#8 begins, and what one in PKCS#1 or SEC1 says of itself.
const ENCRYPTED_KEYS: [&[u8]; 2] = [b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED"];

/// Certificates or a key in PEM, in a file or in memory.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// The path of a file, which [`Tls::reload`] reads again.
    File(PathBuf),
    /// The text itself.
    Text(Vec<u8>),
}

impl Pem {
    /// In a file.
    pub fn file(path: impl Into<PathBuf>) -> Pem {
        Pem::File(path.into())
    }

    /// In memory.
    pub fn text(text: impl Into<Vec<u8>>) -> Pem {
        Pem::Text(text.into())
    }

    fn read(&self) -> Result<Vec<u8>, TlsError> {
        match self {
            Pem::File(path) => fs::read(path).map_err(|source| TlsError::Read { path: path.clone(), source }),
            Pem::Text(text) => Ok(text.clone()),
        }
        // Editors on Windows begin a file with a mark that says how it is encoded.
        .map(|text| text.strip_prefix(BYTE_ORDER_MARK).map(<[u8]>::to_vec).unwrap_or(text))
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let text = self.read()?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        match certificates {
            Ok(certificates) if !certificates.is_empty() => Ok(certificates),
            Ok(_) => Err(TlsError::Unusable(format!("{self:?} has no certificate"))),
            Err(error) => Err(TlsError::Unusable(format!("{self:?}: {error}"))),
        }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let text = self.read()?;
        PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
            let is_encrypted = ENCRYPTED_KEYS.iter().any(|mark| memchr::memmem::find(&text, mark).is_some());
            TlsError::Unusable(match is_encrypted {
                true => format!("{self:?}: the key is encrypted, which is not supported: decrypt it first"),
                false => format!("{self:?}: no private key: {error}"),
            })
        })
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pem::File(path) => write!(f, "{}", path.display()),
            // It may be a key.
            Pem::Text(_) => f.write_str("a text in memory"),
        }
    }
}

/// A certificate with those of its issuers, and its private key.
#[derive(Clone, Debug)]
pub struct Certificate {
    chain: Pem,
    key: Pem,
}

impl Certificate {
    /// With its chain, its own certificate first, and its key in PKCS#1, PKCS#8 or SEC1.
    pub fn new(chain: Pem, key: Pem) -> Certificate {
        Certificate { chain, key }
    }

    /// Both in files.
    pub fn files(chain: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Certificate {
        Certificate::new(Pem::file(chain), Pem::file(key))
    }

    fn certified_key(&self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, TlsError> {
        let unusable = |error| TlsError::Unusable(format!("{:?} with {:?}: {error}", self.chain, self.key));
        let (chain, key) = (self.chain.certificates()?, self.key.key()?);
        let certified = CertifiedKey::from_der(chain, key, provider).map_err(unusable)?;
        Ok(Arc::new(certified))
    }
}

/// How a listener speaks TLS, for [`Tls::new`]: version 1.2 or 1.3, with the cipher suites that rustls and ring think
/// safe.
///
/// ```no_run
/// use backroom::{Certificate, Listener, Pem, Tls, TlsConfig};
///
/// # fn main() -> Result<(), backroom::TlsError> {
/// let config = TlsConfig::new(Certificate::files("example.pem", "example.key"))
///     .name("shop.example", Certificate::files("shop.pem", "shop.key"))
///     .require_clients(Pem::file("our-customers.pem"))
///     .alpn(["mail/1"]);
/// let tls = Tls::new(config)?;
/// let listener = Listener::tcp("[::]:9503").tls(&tls);
/// // Later, once the files have changed, and without losing a connection:
/// tls.reload()?;
/// # let _ = listener;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct TlsConfig {
    certificate: Certificate,
    names: Vec<(String, Certificate)>,
    clients: Clients,
    alpn: Vec<Vec<u8>>,
}

/// Whose certificates clients show.
#[derive(Clone, Debug)]
enum Clients {
    Anonymous,
    MayShow(Pem),
    MustShow(Pem),
}

impl TlsConfig {
    /// With the certificate of all names that have none of their own.
    pub fn new(certificate: Certificate) -> TlsConfig {
        TlsConfig { certificate, names: Vec::new(), clients: Clients::Anonymous, alpn: Vec::new() }
    }

    /// The certificate for clients that ask for this name (SNI), or with `*.example.org` for any name that has one label
    /// in place of the star; a name itself goes before that. What is no name of a host is an error of [`Tls::new`].
    pub fn name(mut self, name: impl Into<String>, certificate: Certificate) -> Self {
        self.names.push((name.into(), certificate));
        self
    }

    /// Only clients with a certificate that one of these has issued may connect.
    pub fn require_clients(mut self, issuers: Pem) -> Self {
        self.clients = Clients::MustShow(issuers);
        self
    }

    /// Clients may show a certificate, which then one of these must have issued; those without are let in as well.
    pub fn accept_clients(mut self, issuers: Pem) -> Self {
        self.clients = Clients::MayShow(issuers);
        self
    }

    /// The protocols that are spoken here, the most wanted first. A client that names some must share one of them. None:
    /// clients are not asked.
    pub fn alpn(mut self, protocols: impl IntoIterator<Item = impl Into<Vec<u8>>>) -> Self {
        self.alpn = protocols.into_iter().map(Into::into).collect();
        self
    }

    fn build(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut names = HashMap::new();
        for (name, certificate) in &self.names {
            names.insert(host_name(name)?, certificate.certified_key(&provider)?);
        }
        let resolver = ByName { names, otherwise: self.certificate.certified_key(&provider)? };
        let versions = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = versions.map_err(|error| TlsError::Unusable(error.to_string()))?;
        let builder = match &self.clients {
            Clients::Anonymous => builder.with_no_client_auth(),
            Clients::MayShow(issuers) => builder.with_client_cert_verifier(verifier(issuers, provider, true)?),
            Clients::MustShow(issuers) => builder.with_client_cert_verifier(verifier(issuers, provider, false)?),
        };
        let mut config = builder.with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols.clone_from(&self.alpn);
        Ok(Arc::new(config))
    }
}

fn verifier(
    issuers: &Pem,
    provider: Arc<CryptoProvider>,
    let_in_without: bool,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let unusable = |error: &dyn fmt::Display| TlsError::Unusable(format!("{issuers:?}: {error}"));
    let mut roots = RootCertStore::empty();
    for certificate in issuers.certificates()? {
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if let_in_without { builder.allow_unauthenticated() } else { builder };
    builder.build().map(|verifier| verifier as _).map_err(|error| unusable(&error))
}

/// The certificate for the name that the client asks for.
#[derive(Debug)]
struct ByName {
    names: HashMap<String, Arc<CertifiedKey>>,
    otherwise: Arc<CertifiedKey>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let own = hello.server_name().and_then(|name| self.find(&name.to_ascii_lowercase()));
        Some(Arc::clone(own.unwrap_or(&self.otherwise)))
    }
}

impl ByName {
    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let of_all = || self.names.get(&format!("*.{}", name.split_once('.')?.1));
        self.names.get(name).or_else(of_all)
    }
}

/// As clients ask for it: in lower case, and without the dot of the root.
fn host_name(name: &str) -> Result<String, TlsError> {
    let asked = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    match DnsName::try_from(asked.strip_prefix("*.").unwrap_or(&asked)) {
        Ok(_) => Ok(asked),
        Err(_) => Err(TlsError::Unusable(format!("{name:?} is no name of a host that a client could ask for"))),
    }
}

/// What makes listeners speak TLS, for [`Listener::tls`](crate::Listener::tls); a clone is the same one. It can be
/// changed while they do: clients that connect from then on meet the new one, and those that are there keep the old.
#[derive(Clone)]
pub struct Tls(Arc<Current>);

struct Current {
    /// Locked while its files are read, so that who changes it last has the last word.
    config: Mutex<Option<TlsConfig>>,
    rustls: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files. An error where one cannot be read, or does not hold what it should.
    pub fn new(config: TlsConfig) -> Result<Tls, TlsError> {
        let rustls = RwLock::new(config.build()?);
        Ok(Tls(Arc::new(Current { config: Mutex::new(Some(config)), rustls })))
    }

    /// With a configuration of rustls, for what [`TlsConfig`] has no setter for. Early data is not taken, whatever it
    /// says: others can send it again, and `on_receive` could not tell. Its clients send it once more after the handshake.
    pub fn from_rustls(mut config: Arc<ServerConfig>) -> Tls {
        if config.max_early_data_size > 0 {
            Arc::make_mut(&mut config).max_early_data_size = 0;
        }
        Tls(Arc::new(Current { config: Mutex::new(None), rustls: RwLock::new(config) }))
    }

    /// Reads the files again. An error changes nothing, and neither does it do anything
    /// [from rustls](Self::from_rustls).
    pub fn reload(&self) -> Result<(), TlsError> {
        let config = self.0.config.lock();
        if let Some(config) = &*config {
            let rustls = config.build()?;
            *self.0.rustls.write() = rustls;
        }
        Ok(())
    }

    /// Takes another configuration instead. An error changes nothing.
    pub fn replace(&self, config: TlsConfig) -> Result<(), TlsError> {
        let mut current = self.0.config.lock();
        let rustls = config.build()?;
        *current = Some(config);
        *self.0.rustls.write() = rustls;
        Ok(())
    }

    pub(crate) fn session(&self) -> Result<Session, rustls::Error> {
        let config = Arc::clone(&self.0.rustls.read());
        ServerConnection::new(config).map(Session::new)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&*self.0.config.lock()).finish()
    }
}

/// Why TLS cannot be spoken.
#[derive(Debug)]
#[non_exhaustive]
pub enum TlsError {
    /// A file could not be read.
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A certificate or a key is not what it should be: which one, and why.
    Unusable(String),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::Read { path, .. } => write!(f, "cannot read {}", path.display()),
            TlsError::Unusable(why) => f.write_str(why),
        }
    }
}

impl Error for TlsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            TlsError::Read { source, .. } => Some(source),
            TlsError::Unusable(_) => None,
        }
    }
}
