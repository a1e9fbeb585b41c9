//! What TLS knows of a client.

use std::fmt;

use rustls::ServerConnection;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// What a client and the server have agreed on, and who the client is; from
/// [`Connection::tls`](crate::Connection::tls).
#[derive(Clone, Copy)]
pub struct TlsInfo<'a> {
    connection: &'a ServerConnection,
}

impl<'a> TlsInfo<'a> {
    pub(super) fn new(connection: &'a ServerConnection) -> TlsInfo<'a> {
        TlsInfo { connection }
    }

    /// The version, such as `TLSv1_3`.
    pub fn version(&self) -> String {
        self.connection.protocol_version().map_or_else(String::new, |version| format!("{version:?}"))
    }

    /// The cipher suite, such as `TLS13_AES_256_GCM_SHA384`.
    pub fn cipher_suite(&self) -> String {
        let suite = self.connection.negotiated_cipher_suite();
        suite.map_or_else(String::new, |suite| format!("{:?}", suite.suite()))
    }

    /// The protocol that was agreed on, where the client asked for one and the server has any:
    /// [`TlsConfig::alpn`](crate::TlsConfig::alpn).
    pub fn alpn(&self) -> Option<&'a [u8]> {
        self.connection.alpn_protocol()
    }

    /// The name of the server that the client asked for.
    pub fn server_name(&self) -> Option<&'a str> {
        self.connection.server_name()
    }

    /// Who the client is, where it has shown a certificate; that has been verified.
    pub fn peer(&self) -> Option<PeerIdentity> {
        let certificates = self.connection.peer_certificates()?;
        Some(PeerIdentity::of(certificates.iter().map(|certificate| certificate.to_vec()).collect()))
    }
}

impl fmt::Debug for TlsInfo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsInfo")
            .field("version", &self.version())
            .field("cipher_suite", &self.cipher_suite())
            .field("server_name", &self.server_name())
            .finish_non_exhaustive()
    }
}

/// Who a client is, by the certificate it has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerIdentity {
    /// The subject, as RFC 4514 writes it: `CN=alice,O=Example`. Empty if it has none.
    pub subject: String,
    /// The alternative names that are text: hosts, mail addresses and URIs.
    pub names: Vec<String>,
    /// The certificates as they were sent, in DER; the client's own is the first.
    pub certificates: Vec<Vec<u8>>,
}

impl PeerIdentity {
    fn of(certificates: Vec<Vec<u8>>) -> PeerIdentity {
        // It was verified, so it can be read, unless by a stricter reader.
        let own = certificates.first().and_then(|own| x509_cert::Certificate::from_der(own).ok());
        let Some(own) = own else { return PeerIdentity { subject: String::new(), names: Vec::new(), certificates } };
        let own = own.tbs_certificate();
        let names = own.get_extension::<SubjectAltName>().ok().flatten();
        let names = names.into_iter().flat_map(|(_critical, names)| names.0).filter_map(|name| match name {
            GeneralName::DnsName(name)
            | GeneralName::UniformResourceIdentifier(name)
            | GeneralName::Rfc822Name(name) => Some(name.to_string()),
            _ => None,
        });
        PeerIdentity { subject: own.subject().to_string(), names: names.collect(), certificates }
    }
}
