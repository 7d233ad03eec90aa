//! The picture of `kube-ipvs top` in the README: what a terminal in a guest has shown, drawn as SVG.

use std::fmt::{self, Write as _};
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::build;
use crate::guest::Guest;
use crate::host;
use crate::kernel::Wanted;

/// The scene takes two minutes when emulated.
const LIMIT: Duration = Duration::from_secs(600);

/// A character's place, in the picture's units.
const CELL: (f64, f64) = (8.0, 17.0);
/// Around the screen.
const MARGIN: f64 = 10.0;
/// Of the line on which letters stand, from above.
const BASELINE: f64 = 13.0;
const FOREGROUND: &str = "#d4d4d4";
const BACKGROUND: &str = "#1e1e1e";

/// Runs the scene in a guest and writes docs/top.svg.
pub(crate) fn run() -> Result<ExitCode> {
    host::prepare(host::GUEST_TOOLS)?;
    build::binaries()?;
    let mut guest = Guest::new(&Wanted::Base)?;
    for name in ["kube-ipvs", "probe", "scene"] {
        guest.program(&build::target_dir().join("debug").join(name), name)?;
    }
    let outcome = guest.run("scene", LIMIT)?;
    ensure!(outcome.code == 0, "the scene ended with {}:\n{}", outcome.code, outcome.console);
    let lines = outcome.console.lines().filter_map(|line| line.trim_end().strip_prefix("screen: "));
    let screen: Vec<String> = lines.map(serde_json::from_str).collect::<Result<_, _>>().context("the scene's screen is torn")?;
    ensure!(!screen.is_empty(), "the scene has shown nothing:\n{}", outcome.console);
    let path = build::root().join("docs/top.svg");
    fs::write(&path, drawn(&screen)).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}

/// How a character looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Look {
    /// Of the eight colours and their eight bright ones.
    colour: Option<u8>,
    bold: bool,
    underlined: bool,
    reversed: bool,
}

/// Characters in a row that look alike.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    column: usize,
    text: String,
    look: Look,
}

impl Look {
    /// Takes in what an escape sequence says (ECMA-48, select graphic rendition).
    fn select(&mut self, parameters: &str) {
        let mut parameters = parameters.split(';').map(|parameter| parameter.parse().unwrap_or(0_u8));
        while let Some(parameter) = parameters.next() {
            match parameter {
                0 => *self = Self::default(),
                1 => self.bold = true,
                4 => self.underlined = true,
                7 => self.reversed = true,
                22 => self.bold = false,
                24 => self.underlined = false,
                27 => self.reversed = false,
                colour @ 30..=37 => self.colour = Some(colour - 30),
                // `38;5;N`: one of 256, of which the first 16 are these.
                38 => self.colour = parameters.by_ref().nth(1).filter(|colour| *colour < 16),
                39 => self.colour = None,
                colour @ 90..=97 => self.colour = Some(colour - 82),
                _ => {}
            }
        }
    }

    const fn colour(self) -> &'static str {
        match self.colour {
            Some(1 | 9) => "#f47067",
            Some(2 | 10) => "#8ddb8c",
            Some(3 | 11) => "#daaa3f",
            Some(4 | 12) => "#6cb6ff",
            Some(8) => "#8b949e",
            Some(_) | None => FOREGROUND,
        }
    }
}

/// The runs of a line, which goes on as the one before has ended.
fn runs(line: &str, look: &mut Look) -> Vec<Run> {
    let (mut runs, mut column): (Vec<Run>, usize) = (Vec::new(), 0);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        if letter == '\x1b' {
            // `ESC [ … m` is all that a captured screen has.
            let sequence: String =
                letters.by_ref().skip_while(|letter| *letter == '[').take_while(|letter| *letter != 'm').collect();
            look.select(&sequence);
        } else if !letter.is_control() {
            match runs.last_mut() {
                Some(run) if run.look == *look => run.text.push(letter),
                _ => runs.push(Run { column, text: letter.into(), look: *look }),
            }
            column += 1;
        }
    }
    runs
}

/// What a terminal has shown, as SVG.
fn drawn(screen: &[String]) -> String {
    let mut look = Look::default();
    let rows: Vec<_> = screen.iter().map(|line| runs(line, &mut look)).collect();
    let columns = rows.iter().flatten().map(|run| run.column + run.text.chars().count()).max().unwrap_or_default();
    let mut svg = String::new();
    // A String takes all that is written.
    let _ = write(&mut svg, &rows, columns);
    svg
}

fn write(svg: &mut String, rows: &[Vec<Run>], columns: usize) -> fmt::Result {
    let (width, height) = (along(columns) + 2.0 * MARGIN, down(rows.len()) + 2.0 * MARGIN);
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"ui-monospace,SFMono-Regular,Menlo,Consolas,monospace\" font-size=\"13\" fill=\"{FOREGROUND}\">\n\
         <title>kube-ipvs top</title>\n<rect width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"{BACKGROUND}\"/>"
    )?;
    for (row, runs) in rows.iter().enumerate() {
        let top = down(row) + MARGIN;
        runs.iter().try_for_each(|run| write_run(svg, run, top))?;
    }
    writeln!(svg, "</svg>")
}

fn write_run(svg: &mut String, Run { column, text, look }: &Run, top: f64) -> fmt::Result {
    let (left, length) = (along(*column) + MARGIN, along(text.chars().count()));
    let colour = if look.reversed { BACKGROUND } else { look.colour() };
    if look.reversed {
        writeln!(svg, "<rect x=\"{left}\" y=\"{top}\" width=\"{length}\" height=\"{}\" fill=\"{}\"/>", CELL.1, look.colour())?;
    }
    // Fonts draw blocks each at another height. Between lines there is a little room, to tell them apart.
    for (index, eighths) in text.chars().enumerate().filter_map(|(index, letter)| Some((index, eighths(letter)?))) {
        let (x, height) = (left + along(index), (CELL.1 - 1.0) * eighths / 8.0);
        let y = top + CELL.1 - height;
        writeln!(svg, "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{height}\" fill=\"{colour}\"/>", CELL.0)?;
    }
    let letters: String = text.chars().map(|letter| if eighths(letter).is_some() { ' ' } else { letter }).collect();
    let shown = letters.trim();
    if shown.is_empty() {
        return Ok(());
    }
    let before = letters.chars().take_while(|letter| letter.is_whitespace()).count();
    let weight = if look.bold { " font-weight=\"bold\"" } else { "" };
    let line = if look.underlined { " text-decoration=\"underline\"" } else { "" };
    // Whatever the font, each letter is in its column.
    writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" textLength=\"{}\" lengthAdjust=\"spacingAndGlyphs\" xml:space=\"preserve\" fill=\"{colour}\"{weight}{line}>{}</text>",
        left + along(before),
        top + BASELINE,
        along(shown.chars().count()),
        shown.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
    )
}

/// How much of a cell a block fills, from below.
fn eighths(letter: char) -> Option<f64> {
    let height = u32::from(letter).checked_sub(0x2580).filter(|height| (1..=8).contains(height))?;
    Some(f64::from(height))
}

fn along(columns: usize) -> f64 {
    u32::try_from(columns).map_or(0.0, f64::from) * CELL.0
}

fn down(rows: usize) -> f64 {
    u32::try_from(rows).map_or(0.0, f64::from) * CELL.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_where_its_look_changes() {
        let mut look = Look::default();
        let found = runs("\x1b[1mab\x1b[0;31mc\x1b[39m \x0f\x1b[7md", &mut look);
        let plain = Look::default();
        let run = |column, text: &str, look| Run { column, text: text.to_owned(), look };
        let wanted = [
            run(0, "ab", Look { bold: true, ..plain }),
            run(2, "c", Look { colour: Some(1), ..plain }),
            run(3, " ", plain),
            run(4, "d", Look { reversed: true, ..plain }),
        ];
        assert_eq!(found, wanted);
        assert!(look.reversed, "the next line goes on so");
        look.select("");
        assert_eq!(look, plain);
        look.select("38;5;3;1");
        assert_eq!(look, Look { colour: Some(3), bold: true, ..plain });
    }

    #[test]
    fn every_letter_has_its_place_and_blocks_are_drawn() {
        let svg = drawn(&["  a<b \x1b[90m▁█\x1b[m".to_owned(), String::new(), "x".to_owned()]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(svg.contains("<text x=\"26\" y=\"23\" textLength=\"24\"") && svg.contains(">a&lt;b</text>"), "{svg}");
        // The lowest block is an eighth of a cell, and grey as what it stands in.
        assert!(svg.contains("<rect x=\"58\" y=\"25\" width=\"8\" height=\"2\" fill=\"#8b949e\"/>"), "{svg}");
        assert!(svg.contains("<rect x=\"66\" y=\"11\" width=\"8\" height=\"16\" fill=\"#8b949e\"/>"), "{svg}");
        assert!(svg.contains("<text x=\"10\" y=\"57\""), "{svg}");
    }
}
