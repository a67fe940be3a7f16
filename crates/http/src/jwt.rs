//! The cryptography of JWTs, by ring: signatures are verified, none are made.

use anyhow::{Context, bail};
use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind,
    crypto::{CryptoProvider, JwtVerifier, KeyUtils},
    errors::{ErrorKind, Result},
    signature::{Error, Verifier},
};
use ring::{
    hmac,
    signature::{self as algorithms, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey},
};
use x509_cert::{
    Certificate,
    der::{Decode, Encode, asn1::ObjectIdentifier, pem},
    spki::SubjectPublicKeyInfoRef,
};

/// Makes ring what `jsonwebtoken` verifies with, in this process.
pub(crate) fn install() {
    static RING: CryptoProvider = CryptoProvider {
        // Dibs takes tokens and gives none.
        signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
        verifier_factory: |algorithm, key| Ok(Box::new(Signature::new(*algorithm, key)?)),
        key_utils: KeyUtils::new_unimplemented(),
    };
    // An error says that it is installed already.
    let _ = RING.install_default();
}

/// A public key in a PEM file, or that of a certificate, with the algorithm that it is for.
pub(crate) fn public_key(file: &[u8]) -> anyhow::Result<(Algorithm, DecodingKey)> {
    const WHAT: &str = "the PEM file is no RSA, Ed25519, P-256 or P-384 public key";
    let (label, der) = pem::decode_vec(file).map_err(|e| anyhow::anyhow!("{WHAT}: {e}"))?;
    match label {
        "RSA PUBLIC KEY" => Ok((Algorithm::RS256, DecodingKey::from_rsa_der(&der))),
        "PUBLIC KEY" => of_info(SubjectPublicKeyInfoRef::from_der(&der).context(WHAT)?).context(WHAT),
        "CERTIFICATE" => {
            let certificate = Certificate::from_der(&der).context(WHAT)?;
            let info = certificate.tbs_certificate().subject_public_key_info().to_der().context(WHAT)?;
            of_info(SubjectPublicKeyInfoRef::from_der(&info).context(WHAT)?).context(WHAT)
        }
        "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" => {
            bail!("the PEM file is a private key, which only who signs tokens may have: give the public one")
        }
        other => bail!("{WHAT}, but a {other}"),
    }
}

/// RFC 5280, 4.1: an algorithm and a key.
fn of_info(info: SubjectPublicKeyInfoRef<'_>) -> anyhow::Result<(Algorithm, DecodingKey)> {
    const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
    const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
    const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
    const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
    const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
    let key = info.subject_public_key.as_bytes().context("the key is no whole number of bytes")?;
    let curve = || info.algorithm.parameters_oid().ok();
    Ok(match info.algorithm.oid {
        RSA => (Algorithm::RS256, DecodingKey::from_rsa_der(key)),
        ED25519 => (Algorithm::EdDSA, DecodingKey::from_ed_der(key)),
        EC if curve() == Some(P256) => (Algorithm::ES256, DecodingKey::from_ec_der(key)),
        EC if curve() == Some(P384) => (Algorithm::ES384, DecodingKey::from_ec_der(key)),
        other => bail!("its algorithm is {other}"),
    })
}

/// One key, and what it verifies.
struct Signature {
    algorithm: Algorithm,
    key: DecodingKeyKind,
}

impl Signature {
    fn new(algorithm: Algorithm, key: &DecodingKey) -> Result<Signature> {
        if key.family() != algorithm.family() {
            return Err(ErrorKind::InvalidKeyFormat.into());
        }
        Ok(Signature { algorithm, key: key.kind().clone() })
    }

    fn check(&self, message: &[u8], signature: &[u8]) -> Option<()> {
        let checked = match (self.algorithm.family(), &self.key) {
            (AlgorithmFamily::Hmac, DecodingKeyKind::SecretOrDer(secret)) => {
                hmac::verify(&hmac::Key::new(hash(self.algorithm)?, secret), message, signature)
            }
            (AlgorithmFamily::Rsa, DecodingKeyKind::SecretOrDer(key)) => {
                UnparsedPublicKey::new(rsa(self.algorithm)?, key).verify(message, signature)
            }
            (AlgorithmFamily::Rsa, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(rsa(self.algorithm)?, message, signature)
            }
            (AlgorithmFamily::Ec, DecodingKeyKind::SecretOrDer(key)) => match self.algorithm {
                Algorithm::ES256 => UnparsedPublicKey::new(&algorithms::ECDSA_P256_SHA256_FIXED, key)
                    .verify(message, signature),
                _ => UnparsedPublicKey::new(&algorithms::ECDSA_P384_SHA384_FIXED, key)
                    .verify(message, signature),
            },
            (AlgorithmFamily::Ed, DecodingKeyKind::SecretOrDer(key)) => {
                UnparsedPublicKey::new(&algorithms::ED25519, key).verify(message, signature)
            }
            (_, DecodingKeyKind::RsaModulusExponent { .. }) => return None,
        };
        checked.ok()
    }
}

fn hash(algorithm: Algorithm) -> Option<hmac::Algorithm> {
    match algorithm {
        Algorithm::HS256 => Some(hmac::HMAC_SHA256),
        Algorithm::HS384 => Some(hmac::HMAC_SHA384),
        Algorithm::HS512 => Some(hmac::HMAC_SHA512),
        _ => None,
    }
}

/// RFC 7518, 3.3: keys of 2048 bits or more.
fn rsa(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    match algorithm {
        Algorithm::RS256 => Some(&algorithms::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => Some(&algorithms::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => Some(&algorithms::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::PS256 => Some(&algorithms::RSA_PSS_2048_8192_SHA256),
        Algorithm::PS384 => Some(&algorithms::RSA_PSS_2048_8192_SHA384),
        Algorithm::PS512 => Some(&algorithms::RSA_PSS_2048_8192_SHA512),
        _ => None,
    }
}

impl Verifier<Vec<u8>> for Signature {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        self.check(message, signature).ok_or_else(Error::new)
    }
}

impl JwtVerifier for Signature {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
