//! The proxy as far as it is pure.

#[path = "../../../src/part/proxy/fields.rs"]
pub(crate) mod fields;
#[path = "../../../src/part/proxy/framing.rs"]
pub(crate) mod framing;
#[path = "../../../src/part/proxy/head.rs"]
pub(crate) mod head;
#[path = "../../../src/part/proxy/origin.rs"]
pub(crate) mod origin;
