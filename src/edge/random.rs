//! Chance, from the kernel.

use std::time::Duration;

use crate::model::fault::Fault;

/// Random bytes.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], Fault> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Fault::World(format!("draw random bytes: {error}")))?;
    Ok(bytes)
}

/// A part of a time, so that those who begin at once do not go on at once; all of it where there is no chance to be had.
pub(crate) fn part_of(whole: Duration) -> Duration {
    let share = bytes().map_or(1.0, |bytes| f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX));
    whole.mul_f64(share)
}
