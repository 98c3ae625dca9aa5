//! The log: lines on standard error, as text for people or JSON for machines.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::LogFormat;
use crate::model::fault::Fault;

/// How much is said where nobody says how much.
pub(crate) const DEFAULT_LEVEL: &str = "info";

/// How much the log says; it can be changed at any time.
pub(crate) struct Level(reload::Handle<Targets, Registry>);

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

/// Reads a level, which is meant for this software: of the libraries below it, only what warns is of use. Or a list of targets
/// with a level each, as in `info,calico=debug`.
fn filter(text: &str) -> Result<Targets, Fault> {
    if let Ok(level) = text.parse::<LevelFilter>() {
        return Ok(Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("calico", level));
    }
    let wrong = |cause: &str| {
        Fault::Refusal(format!(
            "read the log level {text:?}: {cause}; it must be error, warn, info, debug or trace, or levels of targets, as in \
             info,calico=debug"
        ))
    };
    if !text.contains('=') {
        // tracing would take it for the name of a target.
        return Err(wrong("there is no such level"));
    }
    text.parse().map_err(|error: tracing_subscriber::filter::ParseError| wrong(&error.to_string()))
}

/// Starts logging; `level` is a level or levels of targets.
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

#[cfg(test)]
mod tests {
    use tracing::Level as Of;

    use super::*;

    #[test]
    fn a_level_is_meant_for_this_software_and_a_list_for_whom_it_names() {
        let lets = |text: &str, target, level| filter(text).unwrap().would_enable(target, &level);
        assert!(lets("debug", "calico::run", Of::DEBUG) && !lets("debug", "calico::run", Of::TRACE));
        assert!(lets("debug", "h2", Of::WARN) && !lets("debug", "h2", Of::INFO));
        assert!(lets("error", "h2", Of::ERROR) && !lets("error", "h2", Of::WARN));
        assert!(!lets("off", "calico", Of::ERROR));
        assert!(lets("info,calico=debug", "calico", Of::DEBUG) && lets("info,calico=debug", "h2", Of::INFO));
        for bad in ["loud", "calico", "calico=loud"] {
            let refused = filter(bad).unwrap_err().to_string();
            assert!(refused.contains(&format!("{bad:?}")) && refused.contains("info,calico=debug"), "{refused}");
        }
    }
}
