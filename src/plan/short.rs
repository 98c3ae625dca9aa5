//! Short names: objects of the kernel have shorter names than those they stand for.

use sha2::{Digest, Sha256};

use crate::model::name::hex;

/// A name, or where it is longer than `most` characters `_` and digits of its hash. A short name that begins with `_` is
/// hashed too, so that no name can be chosen to equal another's hash.
pub(crate) fn shortened(name: &str, most: usize) -> String {
    if name.len() <= most && !name.starts_with('_') {
        return name.to_owned();
    }
    let digits = hex(&Sha256::digest(name.as_bytes()));
    format!("_{}", digits.chars().take(most - 1).collect::<String>())
}
