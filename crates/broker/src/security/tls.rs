//! TLS of a listener, from Kafka's `ssl.*` settings. Keys and certificates are PEM (`ssl.keystore.type=PEM`,
//! KIP-651).

use std::{fs, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use x509_cert::{Certificate, der::Decode};

/// Builds the server's side of TLS. `setting` gives what is set under a name.
pub(crate) fn server_config<'s>(
    setting: impl Fn(&str) -> Option<&'s str>,
) -> Result<Arc<ServerConfig>, String> {
    for store in ["ssl.keystore", "ssl.truststore"] {
        let kind = setting(&format!("{store}.type"));
        let wanted = setting(&format!("{store}.location")).is_some();
        if wanted && kind.is_none_or(|k| !k.eq_ignore_ascii_case("PEM")) {
            return Err(format!(
                "{store}.type must be PEM; a JKS or PKCS12 store becomes a PEM file with \
                 `keytool -importkeystore … -deststoretype PKCS12` and `openssl pkcs12 -nodes`"
            ));
        }
    }
    let file = |name: &str| {
        setting(name)
            .map(|path| fs::read_to_string(path).map_err(|e| format!("{name}: cannot read {path}: {e}")))
    };
    let text = |inline: &str| setting(inline).map(|text| Ok(text.replace("\\n", "\n")));
    let keystore = file("ssl.keystore.location");
    let chain = text("ssl.keystore.certificate.chain").or_else(|| keystore.clone());
    let key = text("ssl.keystore.key").or(keystore);
    let (Some(chain), Some(key)) = (chain, key) else {
        return Err("an SSL listener needs ssl.keystore.location, or ssl.keystore.key and \
                    ssl.keystore.certificate.chain"
            .into());
    };
    let chain = certificates(&chain?)?;
    let key = PrivateKeyDer::from_pem_slice(key?.as_bytes()).map_err(|e| {
        format!("the key store has no private key in PEM (an encrypted one is not supported): {e}")
    })?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let auth = setting("ssl.client.auth").unwrap_or("none");
    let builder = if auth == "none" {
        builder.with_no_client_auth()
    } else {
        let trusted = text("ssl.truststore.certificates").or_else(|| file("ssl.truststore.location"));
        let trusted = trusted.ok_or("ssl.client.auth needs ssl.truststore.location")??;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&trusted)? {
            roots.add(certificate).map_err(|e| format!("the trust store: {e}"))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = if auth == "requested" { verifier.allow_unauthenticated() } else { verifier };
        builder.with_client_cert_verifier(verifier.build().map_err(|e| format!("the trust store: {e}"))?)
    };
    let config = builder.with_single_cert(chain, key).map_err(|e| format!("the key store: {e}"))?;
    Ok(Arc::new(config))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err("there is no certificate in PEM in the store".into()),
        Err(e) => Err(format!("a certificate in PEM: {e}")),
    }
}

/// The principal of a client's certificate: `User:` and its subject as RFC 4514 writes it, as Kafka does.
pub(crate) fn principal(certificates: Option<&[CertificateDer<'_>]>) -> Option<String> {
    let first = Certificate::from_der(certificates?.first()?).ok()?;
    Some(format!("User:{}", first.tbs_certificate().subject()))
}
