//! The log: lines on standard error, as text for people or JSON for machines.

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;
use crate::model::fault::Fault;

/// Starts logging; `level` is a level or a filter of tracing.
///
/// # Errors
/// `Refusal` for a filter that cannot be read.
pub(crate) fn start(format: LogFormat, level: &str) -> Result<(), Fault> {
    // A bare level is meant for this software; of the libraries below it, only what warns is of use.
    let bare = level.parse::<tracing::Level>().is_ok();
    let filter =
        EnvFilter::try_new(if bare { format!("warn,calico={level}") } else { level.to_owned() }).map_err(|error| {
            Fault::Refusal(format!(
                "read the log level {level:?}: {error}; it must be error, warn, info, debug or trace"
            ))
        })?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let started = match format {
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    started.map_err(|error| Fault::World(format!("start the log: {error}")))
}
