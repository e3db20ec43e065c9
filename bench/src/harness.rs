//! Measuring: interleaved rounds, medians, spreads, and the rows they become.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::time::Instant;
use vksvm::{Builder, Placement, Svm};

/// What a figure should reach; `bench/RESULTS.md` lists them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wanted {
    /// Of the ratio to the peer.
    RatioAtMost(f64),
    /// Of the ratio to the peer.
    RatioAtLeast(f64),
    /// Of the ratio to the physical limit.
    LimitAtLeast(f64),
    /// Of the value itself.
    ValueAtMost(f64),
    /// Of the value itself.
    ValueAtLeast(f64),
}

/// One figure.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) bench: String,
    pub(crate) case: String,
    pub(crate) metric: String,
    pub(crate) unit: String,
    /// The median.
    pub(crate) value: f64,
    /// Half the distance between the quartiles, relative to the median.
    pub(crate) spread: f64,
    /// What it is compared with.
    pub(crate) peer: Option<String>,
    pub(crate) peer_value: Option<f64>,
    /// value / peer, the median over the rounds.
    pub(crate) ratio: Option<f64>,
    /// The physical limit.
    pub(crate) limit: Option<String>,
    /// value / limit, the median over the rounds.
    pub(crate) limit_ratio: Option<f64>,
    pub(crate) runs: usize,
    /// The figure asked for, in words.
    pub(crate) wanted: Option<String>,
    pub(crate) met: Option<bool>,
    pub(crate) device: String,
    pub(crate) tracker: String,
    /// The place on the horizontal axis, for sweeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) x: Option<f64>,
}

/// Measured values, in the order of the rounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(pub(crate) Vec<f64>);

impl Samples {
    pub(crate) fn median(&self) -> f64 {
        quantile(&self.0, 0.5)
    }

    /// Half the distance between the quartiles, relative to the median.
    fn spread(&self) -> f64 {
        let median = self.median();
        if median == 0.0 { 0.0 } else { (quantile(&self.0, 0.75) - quantile(&self.0, 0.25)) / 2.0 / median }
    }

    /// The median of the rounds' ratios.
    pub(crate) fn ratio_to(&self, other: &Samples) -> f64 {
        let ratios: Vec<f64> = self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect();
        quantile(&ratios, 0.5)
    }

    /// Each value changed by `f`.
    pub(crate) fn map(&self, f: impl Fn(f64) -> f64) -> Samples {
        Samples(self.0.iter().map(|&value| f(value)).collect())
    }
}

/// The value below which the share `at` of all values lies.
fn quantile(values: &[f64], at: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = at * last as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (place - low as f64)
}

/// One bench's run: its options and the rows so far.
pub(crate) struct Suite {
    name: &'static str,
    pub(crate) quick: bool,
    runs: Option<u32>,
    case: Option<String>,
    bar: ProgressBar,
    rows: Vec<Row>,
    device: String,
    tracker: String,
}

impl Suite {
    pub(crate) fn new(name: &'static str, quick: bool, runs: Option<u32>, case: Option<String>) -> Self {
        // Draws nothing where standard error is not a terminal.
        let bar = ProgressBar::new(0).with_message(name);
        let style = ProgressStyle::with_template("{msg:40} {wide_bar} {pos}/{len} {elapsed}");
        let bar = if let Ok(style) = style { bar.with_style(style) } else { bar };
        Self { name, quick, runs, case, bar, rows: Vec::new(), device: "none".into(), tracker: "none".into() }
    }

    /// Opens the runtime with options.
    pub(crate) fn open(&mut self, options: impl FnOnce(Builder) -> Builder) -> Result<Svm> {
        let svm = options(Svm::builder()).build()?;
        let info = svm.info();
        self.device = format!("{} ({})", info.device, info.driver);
        self.tracker = info.tracker.to_string();
        Ok(svm)
    }

    /// Opens the runtime with options, and with pages that move to the device, also where it would be faster to use them at home.
    pub(crate) fn open_moving(&mut self, options: impl FnOnce(Builder) -> Builder) -> Result<Svm> {
        self.open(|builder| options(builder.placement(Placement::Copy)))
    }

    /// Measures with the default placement, which `vksvm` chooses by trials on the device and says in `info`, then with pages that move to the device.
    pub(crate) fn open_both(&mut self, measure: fn(&mut Self, &Svm, &str) -> Result<()>) -> Result<()> {
        if self.wants("default placement") {
            let svm = self.open(|builder| builder)?;
            measure(self, &svm, "default placement")?;
        }
        if self.wants("placement copy") {
            let svm = self.open_moving(|builder| builder)?;
            measure(self, &svm, "placement copy")?;
        }
        Ok(())
    }

    /// Whether `case` is among those asked for.
    pub(crate) fn wants(&self, case: &str) -> bool {
        self.case.as_deref().is_none_or(|wanted| case.contains(wanted))
    }

    /// `full`, or `quick` in a quick run.
    pub(crate) fn size<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Runs `contestants` contestants in turn: a warm-up each, then `rounds` rounds. `contest` measures one run
    /// of one and returns what it measured (usually seconds).
    pub(crate) fn interleave(
        &mut self,
        case: &str,
        rounds: u32,
        contestants: usize,
        mut contest: impl FnMut(usize) -> Result<f64>,
    ) -> Result<Vec<Samples>> {
        let rounds = self.runs.unwrap_or(if self.quick { rounds.div_ceil(2).max(3) } else { rounds });
        self.bar.set_message(format!("{}: {case}", self.name));
        self.bar.inc_length(u64::from(rounds + 1) * contestants as u64);
        let mut samples = vec![Samples::default(); contestants];
        for round in 0..=rounds {
            for (contestant, samples) in samples.iter_mut().enumerate() {
                let value = contest(contestant)?;
                if round > 0 {
                    samples.0.push(value);
                }
                self.bar.inc(1);
            }
        }
        Ok(samples)
    }

    /// A row for one figure without comparison.
    pub(crate) fn row(&mut self, case: &str, metric: &str, unit: &str, samples: &Samples) -> &mut Row {
        self.rows.push(Row {
            bench: self.name.into(),
            case: case.into(),
            metric: metric.into(),
            unit: unit.into(),
            value: samples.median(),
            spread: samples.spread(),
            runs: samples.0.len(),
            device: self.device.clone(),
            tracker: self.tracker.clone(),
            ..Row::default()
        });
        self.rows.last_mut().expect("just pushed")
    }

    /// The rows, with the progress bar gone.
    pub(crate) fn finish(self) -> Vec<Row> {
        self.bar.finish_and_clear();
        self.rows
    }
}

impl Row {
    /// Compares with an alternative.
    pub(crate) fn against(&mut self, name: &str, own: &Samples, peer: &Samples) -> &mut Self {
        self.peer = Some(name.into());
        self.peer_value = Some(peer.median());
        self.ratio = Some(own.ratio_to(peer));
        self
    }

    /// Compares with what the machine can do at best.
    pub(crate) fn limited_by(&mut self, name: &str, own: &Samples, limit: &Samples) -> &mut Self {
        self.limit = Some(name.into());
        self.limit_ratio = Some(own.ratio_to(limit));
        self
    }

    /// Says what it should be. Call it last.
    pub(crate) fn wanted(&mut self, wanted: Wanted) -> &mut Self {
        let (text, met) = match wanted {
            Wanted::RatioAtMost(most) => (format!("ratio ≤ {most}"), self.ratio.map(|ratio| ratio <= most)),
            Wanted::RatioAtLeast(least) => (format!("ratio ≥ {least}"), self.ratio.map(|ratio| ratio >= least)),
            Wanted::LimitAtLeast(least) => (format!("limit ≥ {least}"), self.limit_ratio.map(|ratio| ratio >= least)),
            Wanted::ValueAtMost(most) => (format!("value ≤ {most}"), Some(self.value <= most)),
            Wanted::ValueAtLeast(least) => (format!("value ≥ {least}"), Some(self.value >= least)),
        };
        self.wanted = Some(text);
        self.met = met;
        self
    }

    /// Places it on a sweep's horizontal axis.
    pub(crate) fn at(&mut self, x: f64) -> &mut Self {
        self.x = Some(x);
        self
    }
}

/// Seconds that `work` takes.
pub(crate) fn seconds<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64(), result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads_are_interpolated() {
        let samples = Samples(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!(samples.median(), 2.5);
        assert!((samples.spread() - 0.3).abs() < 1e-12);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let own = Samples(vec![2.0, 20.0, 2.0]);
        let peer = Samples(vec![1.0, 10.0, 1.0]);
        assert_eq!(own.ratio_to(&peer), 2.0, "a round in which the machine was slow disturbs both");
    }

    #[test]
    fn quick_runs_still_have_three_rounds() {
        let mut suite = Suite::new("test", true, None, None);
        let samples = suite.interleave("case", 4, 2, |which| Ok(which as f64)).unwrap();
        assert_eq!(samples[1].0, [1.0; 3]);
    }
}
