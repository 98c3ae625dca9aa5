//! The log: lines on standard error, as text for people or JSON for machines.

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::LogFormat;
use crate::model::fault::Fault;

/// How much is said where nobody says how much.
pub(crate) const DEFAULT_LEVEL: &str = "info";

/// How much the log says; it can be changed at any time.
pub(crate) struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// From now on the log says so much.
    ///
    /// # Errors
    /// `Refusal` for a filter that cannot be read, `World` if there is no log any more.
    pub(crate) fn set(&self, level: &str) -> Result<(), Fault> {
        let changed = self.0.reload(filter(level)?);
        changed.map_err(|error| Fault::World(format!("change the level of the log: {error}")))
    }
}

fn filter(level: &str) -> Result<EnvFilter, Fault> {
    // A bare level is meant for this software; of the libraries below it, only what warns is of use.
    let bare = level.parse::<tracing::Level>().is_ok();
    EnvFilter::try_new(if bare { format!("warn,calico={level}") } else { level.to_owned() }).map_err(|error| {
        Fault::Refusal(format!("read the log level {level:?}: {error}; it must be error, warn, info, debug or trace"))
    })
}

/// Starts logging; `level` is a level or a filter of tracing.
///
/// # Errors
/// `Refusal` for a filter that cannot be read.
pub(crate) fn start(format: LogFormat, level: Option<&str>) -> Result<Level, Fault> {
    let (filter, handle) = reload::Layer::new(filter(level.unwrap_or(DEFAULT_LEVEL))?);
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => registry.with(lines.with_ansi(false)).try_init(),
        LogFormat::Json => registry.with(lines.json()).try_init(),
    };
    started.map_err(|error| Fault::World(format!("start the log: {error}")))?;
    Ok(Level(handle))
}
