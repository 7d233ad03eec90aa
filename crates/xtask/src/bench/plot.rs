//! The curves: how each ratio to a floor develops with the number of Services, on two logarithmic axes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::figure::Figure;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 480.0;
/// Around the drawing; the legend is on the right.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 320.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

/// Colours that people with any kind of sight can tell apart (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// A plot of all times that have a reference; `None` unless there are several sizes.
pub(crate) fn svg(title: &str, figures: &[Figure]) -> Option<String> {
    let mut curves: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for figure in figures {
        let Some(ratio) = figure.ratio().filter(|ratio| *ratio > 0.0) else { continue };
        let services = f64::from(u32::try_from(figure.services).ok()?);
        curves.entry(format!("{}: {}", figure.scenario, figure.measure)).or_default().push((services, ratio));
    }
    curves.retain(|_, points| points.len() > 1);
    let points = || curves.values().flatten();
    let horizontal = Axis::over(points().map(|(services, _)| *services), LEFT, WIDTH - RIGHT)?;
    let vertical = Axis::over(points().map(|(_, ratio)| *ratio), HEIGHT - BOTTOM, TOP)?;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"20\">times the reference, by Services ({title})</text>\n"
    );
    for mark in horizontal.marks() {
        let (at, bottom) = (horizontal.place(mark), HEIGHT - BOTTOM);
        let _ = writeln!(svg, "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#ddd\"/>");
        let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{mark}</text>", bottom + 18.0);
    }
    for mark in vertical.marks() {
        let (at, right) = (vertical.place(mark), WIDTH - RIGHT);
        let _ = writeln!(svg, "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{mark}</text>", LEFT - 6.0, at + 4.0);
    }
    for ((name, points), (number, colour)) in curves.iter().zip(COLOURS.iter().cycle().enumerate()) {
        let line: Vec<_> = points
            .iter()
            .map(|(services, ratio)| format!("{:.1},{:.1}", horizontal.place(*services), vertical.place(*ratio)))
            .collect();
        // The second round through the colours is dashed.
        let dash = if number >= COLOURS.len() { " stroke-dasharray=\"6 4\"" } else { "" };
        let _ =
            writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>", line.join(" "));
        let (x, y) = (WIDTH - RIGHT + 16.0, TOP + 16.0 * f64::from(u32::try_from(number).ok()?));
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
            x + 20.0
        );
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\">{name}</text>", x + 26.0, y + 4.0);
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

/// A logarithmic axis from one end of the drawing to the other.
struct Axis {
    least: f64,
    most: f64,
    begin: f64,
    end: f64,
}

impl Axis {
    /// Covers the values, from a 1, 2 or 5 to another.
    fn over(values: impl Iterator<Item = f64> + Clone, begin: f64, end: f64) -> Option<Self> {
        let (least, most) = (values.clone().reduce(f64::min)?, values.reduce(f64::max)?);
        let least = steps().filter(|step| *step <= least).reduce(f64::max)?;
        let most = steps().find(|step| *step >= most && *step > least)?;
        Some(Self { least, most, begin, end })
    }

    fn place(&self, value: f64) -> f64 {
        self.begin + (self.end - self.begin) * (value / self.least).ln() / (self.most / self.least).ln()
    }

    fn marks(&self) -> impl Iterator<Item = f64> {
        let (least, most) = (self.least, self.most);
        steps().filter(move |step| (least..=most).contains(step))
    }
}

/// 0.001, 0.002, 0.005, 0.01 and so on.
fn steps() -> impl Iterator<Item = f64> + Clone {
    (-3..9).flat_map(|power| {
        [1.0, 2.0, 5.0].map(move |step| if power < 0 { step / 10f64.powi(-power) } else { step * 10f64.powi(power) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figure::parse;

    fn figure(services: u64, value: f64) -> Figure {
        let text = format!(
            r#"@@figure {{"services":{services},"scenario":"burst","measure":"latency","unit":"ms","value":{value},"reference":{{"name":"floor","value":2.0}},"goal":null}}"#
        );
        parse(&text).unwrap().unwrap()
    }

    #[test]
    fn a_curve_has_a_point_for_each_size() {
        let plot = svg("a kernel", &[figure(1000, 4.0), figure(10_000, 20.0)]).unwrap();
        // From 1000 to 10000 and from 2 to 10: the corners of the drawing.
        assert!(plot.contains("points=\"60.0,430.0 580.0,40.0\""), "{plot}");
        assert!(plot.contains(">burst: latency</text>"), "{plot}");
    }

    #[test]
    fn one_size_makes_no_curve() {
        assert!(svg("a kernel", &[figure(1000, 4.0)]).is_none());
    }
}
