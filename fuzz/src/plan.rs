//! The decisions under test.

#[path = "../../src/plan/body.rs"]
pub(crate) mod body;
#[path = "../../src/plan/call.rs"]
pub(crate) mod call;
#[path = "../../src/plan/json.rs"]
pub(crate) mod json;
#[path = "../../src/plan/replies.rs"]
pub(crate) mod replies;
#[path = "../../src/plan/runtime.rs"]
pub(crate) mod runtime;
