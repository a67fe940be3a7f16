//! Receipts: proof, checkable offline with the public key alone, that a win stands in the log.
//!
//! What is signed is the win as JSON: campaign, user, partition, offset, timestamp, rank. Signing each win of a
//! rush would cost more than deciding it, so the wins of one commit group are the leaves of a Merkle tree
//! (hashes as in RFC 9162 §2.1: 0x00 before a leaf, 0x01 before a node) and the root is signed once (Ed25519,
//! RFC 8032). A receipt is `WIN.PROOF.SIGNATURE`, each part base64url; the proof is the leaf's index, the number
//! of leaves (u32, big endian) and the hashes of its siblings from the leaf up. A win signed alone is a tree of one.

use std::sync::{Arc, OnceLock};

use data_encoding::BASE64URL_NOPAD as BASE64;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::secret::Secret;

/// Signed before the root, so that the key signs nothing else by accident.
const CONTEXT: &[u8] = b"dibs receipt 1\0";

/// What a receipt says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// The campaign.
    pub campaign: String,
    /// The winner.
    pub user: String,
    /// Where the claim stands in the log.
    pub partition: u32,
    /// Where the claim stands in the partition.
    pub offset: u64,
    /// When it was appended, milliseconds since the epoch.
    pub timestamp: i64,
    /// The winner's number.
    pub rank: u32,
}

/// Why a receipt proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// Not three base64url parts of the right form.
    #[error("this is not a receipt: expected WIN.PROOF.SIGNATURE in base64url")]
    Form,
    /// The signature does not match: the receipt was altered, or another installation's key signed it.
    #[error("the signature does not match this public key")]
    Signature,
    /// The public key is not 32 bytes of hexadecimal digits that are a curve point.
    #[error("this is not an Ed25519 public key: expected 64 hexadecimal digits")]
    Key,
}

/// Signs receipts.
pub struct Signatory(SigningKey);

impl Signatory {
    /// The signing key of an installation.
    pub fn new(secret: &Secret) -> Signatory {
        Signatory(SigningKey::from_bytes(&secret.derive("dibs receipt key 1", "")))
    }

    /// The public key, 64 hexadecimal digits.
    pub fn public_key(&self) -> String {
        data_encoding::HEXLOWER.encode(self.0.verifying_key().as_bytes())
    }

    /// A receipt for one win, alone.
    pub fn sign(&self, win: &Claimed) -> String {
        let mut group = Group::default();
        group.push(&win.campaign, &win.user, win.partition, win.offset, win.timestamp, win.rank);
        Arc::new(group).receipt(0, self)
    }

    fn sign_root(&self, root: &Hash) -> [u8; 64] {
        self.0.sign(&[CONTEXT, root].concat()).to_bytes()
    }
}

/// Checks a receipt offline.
pub fn verify(receipt: &str, public_key: &str) -> Result<Claimed, ReceiptError> {
    let key = data_encoding::HEXLOWER_PERMISSIVE.decode(public_key.trim().as_bytes()).ok();
    let key: [u8; 32] = key.and_then(|k| k.try_into().ok()).ok_or(ReceiptError::Key)?;
    let key = VerifyingKey::from_bytes(&key).map_err(|_| ReceiptError::Key)?;
    let mut parts = receipt.trim().split('.').map(|p| BASE64.decode(p.as_bytes()).ok());
    let mut part = || parts.next().flatten().ok_or(ReceiptError::Form);
    let (win, proof, signature) = (part()?, part()?, part()?);
    let root = root_of(&win, &proof).filter(|_| parts.next().is_none()).ok_or(ReceiptError::Form)?;
    let signature = Signature::from_slice(&signature).map_err(|_| ReceiptError::Form)?;
    key.verify_strict(&[CONTEXT, &root[..]].concat(), &signature).map_err(|_| ReceiptError::Signature)?;
    serde_json::from_slice(&win).map_err(|_| ReceiptError::Form)
}

type Hash = [u8; 32];

fn leaf(win: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(win).finalize().into()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// The root that a leaf and its proof lead to.
fn root_of(win: &[u8], proof: &[u8]) -> Option<Hash> {
    let (index, rest) = proof.split_first_chunk::<4>()?;
    let (size, path) = rest.split_first_chunk::<4>()?;
    let (mut index, mut size) = (u32::from_be_bytes(*index), u32::from_be_bytes(*size));
    let (siblings, []) = path.as_chunks::<32>() else { return None };
    let mut siblings = siblings.iter();
    let mut hash = leaf(win);
    if index >= size {
        return None;
    }
    while size > 1 {
        if index % 2 == 1 {
            hash = node(siblings.next()?, &hash);
        } else if index + 1 < size {
            hash = node(&hash, siblings.next()?);
        }
        (index, size) = (index / 2, size.div_ceil(2));
    }
    siblings.next().is_none().then_some(hash)
}

/// The wins of one commit group. Collecting them is all that the decider does; whoever first asks for a receipt
/// builds the tree and signs it, for all.
#[derive(Default)]
pub struct Group {
    text: Vec<u8>,
    ends: Vec<u32>,
    tree: OnceLock<Tree>,
}

struct Tree {
    /// Leaves first, the root last.
    levels: Vec<Vec<Hash>>,
    signature: [u8; 64],
}

impl Group {
    /// Adds a win; returns its index.
    pub fn push(
        &mut self,
        campaign: &str,
        user: &str,
        partition: u32,
        offset: u64,
        time: i64,
        rank: u32,
    ) -> u32 {
        use dibs_model::command::json_string;
        use std::io::Write;
        let out = &mut self.text;
        out.extend_from_slice(br#"{"campaign":"#);
        json_string(campaign, out);
        out.extend_from_slice(br#","user":"#);
        json_string(user, out);
        write!(out, r#","partition":{partition},"offset":{offset},"timestamp":{time},"rank":{rank}}}"#)
            .expect("writing into memory");
        self.ends.push(self.text.len() as u32);
        self.ends.len() as u32 - 1
    }

    fn win(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |i| self.ends[i] as usize);
        &self.text[start..self.ends[index] as usize]
    }

    /// The receipt of the win at `index`.
    pub fn receipt(&self, index: u32, signatory: &Signatory) -> String {
        let tree = self.tree.get_or_init(|| self.grow(signatory));
        let mut proof = Vec::with_capacity(8 + 32 * tree.levels.len());
        proof.extend_from_slice(&index.to_be_bytes());
        proof.extend_from_slice(&(self.ends.len() as u32).to_be_bytes());
        let mut at = index as usize;
        for level in &tree.levels {
            proof.extend_from_slice(level.get(at ^ 1).map_or(&[][..], |h| &h[..]));
            at /= 2;
        }
        let mut out = String::with_capacity(512);
        BASE64.encode_append(self.win(index as usize), &mut out);
        out.push('.');
        BASE64.encode_append(&proof, &mut out);
        out.push('.');
        BASE64.encode_append(&tree.signature, &mut out);
        out
    }

    fn grow(&self, signatory: &Signatory) -> Tree {
        let mut levels = vec![(0..self.ends.len()).map(|i| leaf(self.win(i))).collect::<Vec<_>>()];
        while let Some(below) = levels.last().filter(|l| l.len() > 1) {
            // A node without a sibling goes up as it is.
            let up = below.chunks(2).map(|p| if let [l, r] = p { node(l, r) } else { p[0] }).collect();
            levels.push(up);
        }
        let signature = signatory.sign_root(&levels.last().expect("a group has a win")[0]);
        Tree { levels, signature }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(n: u32) -> Group {
        let mut group = Group::default();
        for i in 0..n {
            assert_eq!(group.push("summer", &format!("u\"{i}"), 0, 100 + u64::from(i), 5, i + 1), i);
        }
        group
    }

    #[test]
    fn every_receipt_of_every_group_size_verifies() {
        let signatory = Signatory::new(&Secret::new([1; 32]));
        let key = signatory.public_key();
        for n in 1..=33 {
            let group = group(n);
            for i in 0..n {
                let win = verify(&group.receipt(i, &signatory), &key).unwrap();
                assert_eq!((win.rank, win.user), (i + 1, format!("u\"{i}")));
            }
        }
    }

    #[test]
    fn an_altered_receipt_proves_nothing() {
        let signatory = Signatory::new(&Secret::new([1; 32]));
        let key = signatory.public_key();
        let receipt = group(5).receipt(2, &signatory);
        let other = Signatory::new(&Secret::new([2; 32])).public_key();
        assert_eq!(verify(&receipt, &other), Err(ReceiptError::Signature));
        assert_eq!(verify("a.b", &key), Err(ReceiptError::Form));
        assert_eq!(verify(&receipt, "zz"), Err(ReceiptError::Key));
        let parts: Vec<&str> = receipt.split('.').collect();
        let forged = String::from_utf8(BASE64.decode(parts[0].as_bytes()).unwrap()).unwrap();
        let forged = BASE64.encode(forged.replace(r#""rank":3"#, r#""rank":1"#).as_bytes());
        assert!(verify(&[&forged, parts[1], parts[2]].join("."), &key).is_err());
        for at in 0..receipt.len() {
            let mut bytes = receipt.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert!(verify(std::str::from_utf8(&bytes).unwrap(), &key).is_err(), "byte {at}");
        }
    }
}
