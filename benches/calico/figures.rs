//! Numbers from samples, and tables from numbers.

use std::time::Duration;

use crate::Outcome;

/// Samples of one kind, in milliseconds.
#[derive(Default, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, took: Duration) {
        self.push_ms(took.as_secs_f64() * 1e3);
    }

    pub(crate) fn push_ms(&mut self, took_ms: f64) {
        self.0.push(took_ms);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The sample below which so many of a thousand lie (nearest rank).
    pub(crate) fn quantile(&self, of_thousand: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (of_thousand * sorted.len()).div_ceil(1000);
        sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(500)
    }

    /// Where the difference of the medians to another kind lies with 95 % confidence (bootstrap, 2,000 draws).
    pub(crate) fn median_over(&self, other: &Samples, dice: &mut Dice) -> (f64, f64) {
        let mut differences = Samples::default();
        for _ in 0..2000 {
            differences.push_ms(self.drawn(dice).median() - other.drawn(dice).median());
        }
        (differences.quantile(25), differences.quantile(975))
    }

    fn drawn(&self, dice: &mut Dice) -> Samples {
        Samples(self.0.iter().filter_map(|_| self.0.get(dice.below(self.0.len())).copied()).collect())
    }
}

/// Numbers that look random and are the same in every run (xorshift64*).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new() -> Dice {
        Dice(0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// Prints a table that is both readable and Markdown.
pub(crate) fn table(title: &str, head: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("| {} |", cells.join(" | "));
    };
    println!("\n### {title}\n");
    line(&head.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>());
    line(&widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>());
    for row in rows {
        line(row);
    }
}

pub(crate) fn ms(value: f64) -> String {
    format!("{value:.1}")
}

pub(crate) fn signed(value: f64) -> String {
    format!("{value:+.1}")
}

/// A count as a number to reckon with.
pub(crate) fn whole(count: usize) -> f64 {
    let (high, low) = (u32::try_from(count >> 20), u32::try_from(count & 0xf_ffff));
    high.map_or(f64::NAN, f64::from) * f64::from(1 << 20) + low.map_or(0.0, f64::from)
}

/// What Prometheus text says of one span.
pub(crate) struct Span {
    /// A whole number, as Prometheus writes all numbers.
    pub(crate) count: f64,
    pub(crate) p50: String,
    pub(crate) p99: String,
}

/// Reads a summary or a histogram of seconds. `None` if the metric is not there.
pub(crate) fn span(text: &str, metric: &str) -> Outcome<Option<Span>> {
    let mut count = None;
    let mut quantiles = Vec::new();
    let mut buckets = Vec::new();
    for line in text.lines().filter(|line| line.starts_with(metric)) {
        let Some((name, value)) = line.rsplit_once(' ') else { continue };
        let value: f64 = value.parse()?;
        let label = |key: &str| name.split_once(&format!("{key}=\"")).and_then(|(_, rest)| rest.split('"').next());
        if name.starts_with(&format!("{metric}_count")) {
            count = Some(value);
        } else if let Some(quantile) = label("quantile") {
            quantiles.push((quantile.parse::<f64>()?, value));
        } else if let Some(bound) = label("le") {
            buckets.push((bound.parse::<f64>()?, value));
        }
    }
    let Some(count) = count else { return Ok(None) };
    let read = |share: f64| {
        let exact = quantiles.iter().find(|(quantile, _)| (quantile - share).abs() < 1e-9);
        let bucket = buckets.iter().find(|(_, below)| *below >= share * count);
        match (exact, bucket) {
            (Some((_, seconds)), _) => ms(seconds * 1e3),
            (None, Some((bound, _))) => format!("≤ {}", ms(bound * 1e3)),
            (None, None) => "not told".to_owned(),
        }
    };
    Ok(Some(Span { count, p50: read(0.5), p99: read(0.99) }))
}
