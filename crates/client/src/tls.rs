//! TLS, with certificates in PEM.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{ClientError, Properties};

/// Where distributions keep the certificates that the system trusts.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How a connection is encrypted.
#[derive(Clone, Default)]
pub(crate) struct Tls {
    /// PEM of whom to trust; the system's for `None`.
    trusted: Option<Pem>,
    /// PEM of the client's own chain and key.
    own: Option<(Pem, Pem)>,
    any_name: bool,
    connector: Option<TlsConnector>,
}

/// PEM, in a file or as it is.
#[derive(Clone)]
enum Pem {
    File(String),
    Text(String),
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TLS")
    }
}

impl Tls {
    /// Takes what concerns TLS out of `properties`. Nothing is read from disk yet.
    pub(crate) fn new(properties: &mut Properties) -> Result<Tls, ClientError> {
        let trusted = store(properties, "truststore")?.or(text(properties, "ssl.truststore.certificates"));
        let both = store(properties, "keystore")?;
        let chain = both.clone().or(text(properties, "ssl.keystore.certificate.chain"));
        let key = both.or(text(properties, "ssl.keystore.key"));
        // Passwords are for Java's stores and encrypted keys; the latter are refused when they are read.
        for unused in ["ssl.truststore.password", "ssl.keystore.password", "ssl.key.password"] {
            properties.take(unused);
        }
        let identification = properties.take("ssl.endpoint.identification.algorithm");
        Ok(Tls {
            trusted,
            own: chain.zip(key),
            any_name: identification.is_some_and(|algorithm| algorithm.is_empty()),
            connector: None,
        })
    }

    /// Reads the certificates.
    pub(crate) fn prepared(mut self) -> Result<Tls, ClientError> {
        let mut roots = RootCertStore::empty();
        let trusted = self.roots()?;
        for certificate in &trusted {
            // A system's bundle may hold some that are too old to be of use.
            let _ = roots.add(certificate.clone());
        }
        if roots.is_empty() {
            return Err(wrong("no certificate to trust: set ssl.truststore.location to a PEM file"));
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|e| wrong(&format!("ssl.truststore: {e}")))?;
        let any_name = self.any_name;
        let verifier = Verifier { inner: verifier, trusted, any_name, provider: provider.clone() };
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| wrong(&e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match &self.own {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let key = PrivateKeyDer::from_pem_slice(&chain_bytes(key)?).map_err(|e| {
                    wrong(&format!(
                        "ssl.keystore: no private key that can be read ({e}); encrypted keys cannot"
                    ))
                })?;
                builder
                    .with_client_auth_cert(certificates(chain)?, key)
                    .map_err(|e| wrong(&format!("ssl.keystore: {e}")))?
            }
        };
        self.connector = Some(TlsConnector::from(Arc::new(config)));
        Ok(self)
    }

    fn roots(&self) -> Result<Vec<CertificateDer<'static>>, ClientError> {
        if let Some(trusted) = &self.trusted {
            return certificates(trusted);
        }
        let named = std::env::var("SSL_CERT_FILE").ok();
        let found = named.iter().map(String::as_str).chain(SYSTEM_ROOTS.iter().copied());
        match found.into_iter().find(|file| std::path::Path::new(file).exists()) {
            Some(file) => certificates(&Pem::File(file.to_owned())),
            None => Ok(Vec::new()),
        }
    }

    /// Encrypts a connection to `address`.
    pub(crate) async fn connect(
        &self,
        address: &str,
        socket: TcpStream,
    ) -> Result<TlsStream<TcpStream>, ClientError> {
        let not_kafka = |why: String| ClientError::NotKafka { address: address.to_owned(), why };
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| not_kafka(format!("{host} is not a name that a certificate could have")))?;
        let Some(connector) = &self.connector else { return Err(wrong("TLS is not prepared")) };
        connector.connect(name, socket).await.map_err(|error| {
            let hint = match error.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
                Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                    ". Set ssl.truststore.location to the PEM of its certificate authority"
                }
                Some(Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) => ". If that is meant, set ssl.endpoint.identification.algorithm= (empty)",
                Some(Error::InvalidCertificate(CertificateError::Other(_))) => {
                    ". If it is self-signed, set ssl.truststore.location to its own PEM"
                }
                Some(Error::InvalidMessage(_)) => ". Its listener seems not to be an SSL one",
                None if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    ". Its listener seems not to be an SSL one, or it asks for a client certificate \
                     (ssl.keystore.location)"
                }
                _ => "",
            };
            not_kafka(format!("TLS: {error}{hint}"))
        })
    }
}

/// A store's file, if it is one of PEM.
fn store(properties: &mut Properties, side: &str) -> Result<Option<Pem>, ClientError> {
    let kind = properties.take(&format!("ssl.{side}.type"));
    let Some(file) = properties.take(&format!("ssl.{side}.location")) else { return Ok(None) };
    let named = [".jks", ".p12", ".pfx"].iter().any(|end| file.ends_with(end));
    if kind.map_or(named, |kind| !kind.eq_ignore_ascii_case("PEM")) {
        return Err(wrong(&format!(
            "ssl.{side}.location={file} is a Java key store, and only PEM is read here: write what is in it as \
             PEM (keytool -exportcert -rfc, openssl pkcs12) and set ssl.{side}.type=PEM"
        )));
    }
    Ok(Some(Pem::File(file)))
}

fn text(properties: &mut Properties, name: &str) -> Option<Pem> {
    properties.take(name).map(Pem::Text)
}

fn chain_bytes(pem: &Pem) -> Result<Vec<u8>, ClientError> {
    match pem {
        Pem::Text(text) => Ok(text.clone().into_bytes()),
        Pem::File(file) => std::fs::read(file).map_err(|e| wrong(&format!("cannot read {file}: {e}"))),
    }
}

fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let bytes = chain_bytes(pem)?;
    let all = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let named = match pem {
        Pem::File(file) => file.as_str(),
        Pem::Text(_) => "the certificates given",
    };
    all.map_err(|e| wrong(&format!("{named}: {e}")))
}

fn wrong(what: &str) -> ClientError {
    ClientError::Config(what.to_owned())
}

/// Java's rules: a certificate that is itself trusted needs no chain (the self-signed ones of test clusters), any
/// other does; the name counts unless `ssl.endpoint.identification.algorithm` is empty.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
    any_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.trusted.iter().any(|trusted| trusted == end_entity) {
            if !self.any_name {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at last: all else was right.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.any_name => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn java_key_stores_are_refused_in_words() {
        for text in
            ["ssl.truststore.location=/x/trust.jks", "ssl.keystore.location=/x/k\nssl.keystore.type=PKCS12"]
        {
            let error = Tls::new(&mut Properties::parse(text)).unwrap_err().to_string();
            assert!(error.contains("only PEM"), "{error}");
        }
        let pem = "ssl.truststore.location=/nowhere/ca.pem\nssl.endpoint.identification.algorithm=";
        let tls = Tls::new(&mut Properties::parse(pem)).unwrap();
        assert!(tls.any_name);
        assert!(tls.prepared().unwrap_err().to_string().contains("/nowhere/ca.pem"));
    }
}
