//! Files that need not be there.

use std::io::{self, ErrorKind};

/// What was done with a file; `None`: there was none, which is no error.
pub(crate) fn if_there<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        done => done.map(Some),
    }
}
