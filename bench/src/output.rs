//! Results: a table on the terminal, JSON, and plots as SVG.

use crate::harness::Row;
use anyhow::Result;
use std::fmt::Write;
use std::path::Path;

/// Prints a bench's rows.
pub(crate) fn table(name: &str, about: &str, rows: &[Row]) {
    println!("\n{name}: {about}");
    if let Some(row) = rows.last() {
        println!("{}, {}", row.device, row.tracker);
    }
    let header = ["case", "metric", "value", "±", "against", "ratio", "of limit", "wanted", ""].map(String::from);
    let mut lines = vec![header];
    for row in rows {
        lines.push([
            row.case.clone(),
            row.metric.clone(),
            with_unit(row.value, &row.unit),
            format!("{:.0} %", row.spread * 100.0),
            row.peer.clone().unwrap_or_default(),
            row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            match (&row.limit, row.limit_ratio) {
                (Some(limit), Some(ratio)) => format!("{ratio:.2} {limit}"),
                _ => String::new(),
            },
            row.wanted.clone().unwrap_or_default(),
            row.met.map(|met| if met { "ok" } else { "MISSED" }).unwrap_or_default().into(),
        ]);
    }
    let widths: Vec<usize> =
        (0..9).map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)).collect();
    for line in lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        println!("  {}", cells.join("  ").trim_end());
    }
}

/// A value with its unit; seconds in the unit that suits them.
fn with_unit(value: f64, unit: &str) -> String {
    if unit != "s" {
        return format!("{} {unit}", short(value));
    }
    match value {
        v if v < 1e-6 => format!("{} ns", short(v * 1e9)),
        v if v < 1e-3 => format!("{} µs", short(v * 1e6)),
        v if v < 1.0 => format!("{} ms", short(v * 1e3)),
        v => format!("{} s", short(v)),
    }
}

/// Three significant digits.
fn short(value: f64) -> String {
    let digits = if value == 0.0 { 0 } else { (2 - value.abs().log10().floor() as i32).clamp(0, 6) as usize };
    format!("{value:.digits$}")
}

/// Writes all rows as an array of objects.
pub(crate) fn json(path: &Path, rows: &[Row]) -> Result<()> {
    Ok(std::fs::write(path, serde_json::to_string_pretty(rows)? + "\n")?)
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 330.0;
const RIGHT: f64 = 90.0;
const BAR: f64 = 20.0;

/// Draws one file for each bench: `NAME.svg` with a bar for each ratio, `NAME-sweep.svg` with a line for each
/// metric of its sweeps.
pub(crate) fn svg(folder: &Path, rows: &[Row]) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut names: Vec<&str> = rows.iter().map(|row| row.bench.as_str()).collect();
    names.dedup();
    for name in names {
        let own: Vec<&Row> = rows.iter().filter(|row| row.bench == name).collect();
        let compared: Vec<(&Row, f64)> =
            own.iter().filter_map(|row| Some((*row, row.ratio.or(row.limit_ratio)?))).collect();
        if !compared.is_empty() {
            std::fs::write(folder.join(format!("{name}.svg")), bars(name, &compared))?;
        }
        let swept: Vec<&Row> = own.into_iter().filter(|row| row.x.is_some()).collect();
        if !swept.is_empty() {
            std::fs::write(folder.join(format!("{name}-sweep.svg")), lines(name, &swept))?;
        }
    }
    Ok(())
}

fn open(title: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"12\" y=\"22\" \
         font-size=\"15\">{}</text>\n",
        escape(title)
    )
}

fn bars(name: &str, rows: &[(&Row, f64)]) -> String {
    let top = 40.0;
    let mut svg = open(&format!("{name}: ratio to the peer, or to the limit"), top + rows.len() as f64 * BAR + 30.0);
    let largest = rows.iter().map(|(_, ratio)| *ratio).fold(1.0, f64::max);
    // Ratios of 100 would leave nothing to see of those around 1.
    let logarithmic = largest > 12.0;
    let scale = |ratio: f64| if logarithmic { (1.0 + ratio).ln() } else { ratio };
    let width = |ratio: f64| (WIDTH - LEFT - RIGHT) * scale(ratio.max(0.0)) / scale(largest);
    for (index, (row, ratio)) in rows.iter().enumerate() {
        let y = top + index as f64 * BAR;
        let against = row.peer.as_deref().or(row.limit.as_deref()).unwrap_or_default();
        let colour = match row.met {
            Some(true) => "#2a8",
            Some(false) => "#c43",
            None => "#58a",
        };
        let label = escape(&format!("{} {} / {against}", row.case, row.metric));
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{label}</text><rect x=\"{LEFT}\" y=\"{:.0}\" \
             width=\"{:.1}\" height=\"14\" fill=\"{colour}\"/><text x=\"{:.0}\" y=\"{:.0}\">{ratio:.2}</text>",
            LEFT - 6.0,
            y + 12.0,
            y + 1.0,
            width(*ratio),
            LEFT + width(*ratio) + 5.0,
            y + 12.0
        );
    }
    let one = LEFT + width(1.0);
    let bottom = top + rows.len() as f64 * BAR;
    let _ = writeln!(
        svg,
        "<line x1=\"{one:.0}\" y1=\"{top}\" x2=\"{one:.0}\" y2=\"{bottom}\" stroke=\"#444\" stroke-dasharray=\"3\"/>\
         <text x=\"{one:.0}\" y=\"{:.0}\" text-anchor=\"middle\">1</text></svg>",
        bottom + 16.0
    );
    svg
}

fn lines(name: &str, rows: &[&Row]) -> String {
    const COLOURS: [&str; 8] = ["#2a8", "#c43", "#58a", "#a5c", "#d92", "#777", "#194", "#835"];
    let (height, top, bottom) = (420.0, 50.0, 370.0);
    let (left, right) = (70.0, WIDTH - 250.0);
    let mut svg = open(&format!("{name}: value over size, both logarithmic"), height);
    let mut metrics: Vec<&str> = rows.iter().map(|row| row.metric.as_str()).collect();
    metrics.sort_unstable();
    metrics.dedup();
    let logs = |f: &dyn Fn(&Row) -> f64| {
        let values: Vec<f64> = rows.iter().map(|row| f(row).max(1e-12).ln()).collect();
        let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), &v| (l.min(v), h.max(v)));
        (low, (high - low).max(1e-9))
    };
    let (x_low, x_span) = logs(&|row| row.x.unwrap_or(1.0));
    let (y_low, y_span) = logs(&|row| row.value);
    for (index, metric) in metrics.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let mut points = String::new();
        for row in rows.iter().filter(|row| row.metric == *metric) {
            let x = left + (right - left) * (row.x.unwrap_or(1.0).max(1e-12).ln() - x_low) / x_span;
            let y = bottom - (bottom - top) * (row.value.max(1e-12).ln() - y_low) / y_span;
            let _ = write!(points, "{x:.1},{y:.1} ");
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"><title>{}: {}</title></circle>",
                escape(&row.case),
                with_unit(row.value, &row.unit)
            );
        }
        let legend = top + 18.0 * index as f64;
        let _ = writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\"/><text x=\"{:.0}\" y=\"{legend:.0}\" \
             fill=\"{colour}\">{}</text>",
            right + 12.0,
            escape(metric)
        );
    }
    svg + "</svg>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(case: &str, x: Option<f64>) -> Row {
        let (bench, metric) = ("test".into(), "time".into());
        Row { bench, metric, case: case.into(), unit: "s".into(), value: 2e-3, ratio: Some(1.25), x, ..Row::default() }
    }

    #[test]
    fn values_have_three_digits_and_a_fitting_unit() {
        assert_eq!(with_unit(0.001_234_5, "s"), "1.23 ms");
        assert_eq!(with_unit(123.4, "ranges"), "123 ranges");
        assert_eq!(with_unit(0.0, "%"), "0 %");
    }

    #[test]
    fn json_has_the_promised_keys() {
        let text = serde_json::to_string(&[row("a", None)]).unwrap();
        for key in
            ["bench", "case", "metric", "unit", "value", "peer", "ratio", "limit_ratio", "runs", "device", "tracker"]
        {
            assert!(text.contains(&format!("\"{key}\"")), "{key} is missing: {text}");
        }
    }

    #[test]
    fn drawings_escape_names_and_show_ratios() {
        let row = row("a < b", Some(1.0));
        let drawn = bars("test", &[(&row, 1.25)]);
        assert!(drawn.contains("a &lt; b") && drawn.contains("1.25") && drawn.ends_with("</svg>\n"));
        assert!(lines("test", &[&row]).contains("<polyline"));
    }
}
