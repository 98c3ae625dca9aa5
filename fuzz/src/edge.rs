//! What the modules under test ask of the sockets: the trait alone, as it stands in `src/edge/relay.rs`.

pub(crate) mod relay {
    pub(crate) trait Bounds {
        fn pass(&mut self, bytes: &[u8]) -> usize;
        fn unseen(&self) -> u64;
        fn skip(&mut self, count: u64);
        fn is_over(&self) -> bool;
    }
}
