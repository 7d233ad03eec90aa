//! Numbers in few columns.

use super::sample::as_float;

/// A number of at most five characters: `999`, `12.3K`, `4.56M`.
pub(crate) fn short(number: f64) -> String {
    const UNITS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];
    let (mut rest, mut unit) = (number.max(0.0), UNITS.iter());
    let mut name = unit.next().copied().unwrap_or_default();
    // What would be rounded to 1000 has a larger unit.
    while rest >= 999.5 {
        let Some(next) = unit.next() else { break };
        rest /= 1000.0;
        name = next;
    }
    match (name, rest) {
        ("", 0.0) => "0".to_owned(),
        ("", rest) if rest < 9.95 => format!("{rest:.1}"),
        ("", rest) => format!("{rest:.0}"),
        (name, rest) if rest < 9.995 => format!("{rest:.2}{name}"),
        (name, rest) if rest < 99.95 => format!("{rest:.1}{name}"),
        (name, rest) => format!("{rest:.0}{name}"),
    }
}

/// A number of connections, in as many.
pub(crate) fn count(number: u64) -> String {
    match number {
        0..=99_999 => number.to_string(),
        _ => short(as_float(number)),
    }
}

/// What a terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Glyphs {
    /// Blocks of eight heights.
    Unicode,
    /// Letters, for a locale that has no more.
    Ascii,
}

impl Glyphs {
    /// What the locale says (locale(7)): the first of these that is set counts.
    pub(crate) fn of_locale(variable: impl Fn(&str) -> Option<String>) -> Self {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
        let locale = locale.unwrap_or_default().to_lowercase();
        if locale.contains("utf-8") || locale.contains("utf8") { Self::Unicode } else { Self::Ascii }
    }

    const fn bars(self) -> [char; 8] {
        match self {
            Self::Unicode => ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
            Self::Ascii => ['_', '.', ',', '-', '=', '+', '*', '#'],
        }
    }

    /// The last `width` of `values`, a character each, up to the largest of them; a space where there is nothing.
    pub(crate) fn sparkline(self, values: impl DoubleEndedIterator<Item = f64> + Clone, width: usize) -> String {
        let largest = values.clone().rev().take(width).fold(0.0, f64::max);
        let bars = self.bars();
        let bar = |value: f64| {
            // The first height at which as much of the whole is reached.
            let height = (1_u8..=8).find(|height| value * 8.0 <= largest * f64::from(*height)).unwrap_or(8);
            if value > 0.0 { bars.get(usize::from(height) - 1).copied().unwrap_or(' ') } else { ' ' }
        };
        let mut line: Vec<_> = values.rev().take(width).map(bar).collect();
        line.resize(width, ' ');
        line.iter().rev().collect()
    }

    /// How much `part` is of 1, in `width` characters.
    pub(crate) fn bar(self, part: f64, width: usize) -> String {
        let full = match self {
            Self::Unicode => '█',
            Self::Ascii => '#',
        };
        let width_of = |cell: usize| u32::try_from(cell).map_or(f64::MAX, f64::from);
        // A cell is full when half of it is reached.
        (0..width).map(|cell| if part * width_of(width) >= width_of(cell) + 0.5 { full } else { ' ' }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_at_most_five_characters() {
        let cases = [
            (0.0, "0"),
            (0.04, "0.0"),
            (3.0, "3.0"),
            (9.96, "10"),
            (999.4, "999"),
            (999.6, "1.00K"),
            (12_345.0, "12.3K"),
            (999_600.0, "1.00M"),
            (234_567_890.0, "235M"),
            (1.5e18, "1.50E"),
            (-1.0, "0"),
        ];
        for (number, text) in cases {
            assert_eq!(short(number), text);
        }
        assert!((0..2_000).map(|power| short(1.01_f64.powi(power))).all(|text| text.len() <= 5 || text.ends_with('E')));
    }

    #[test]
    fn numbers_of_connections_are_exact_as_long_as_there_is_room() {
        assert_eq!((count(0), count(99_999), count(100_000)), ("0".to_owned(), "99999".to_owned(), "100K".to_owned()));
        assert_eq!(count(u64::MAX), "18.4E");
    }

    #[test]
    fn sparklines_show_the_latest_up_to_the_largest() {
        let values = [100.0, 0.0, 1.0, 4.0, 8.0];
        assert_eq!(Glyphs::Unicode.sparkline(values.into_iter(), 4), " ▁▄█");
        assert_eq!(Glyphs::Ascii.sparkline(values.into_iter(), 7), "  # ___");
        assert_eq!(Glyphs::Unicode.sparkline([0.0; 3].into_iter(), 5), "     ");
    }

    #[test]
    fn bars_are_as_long_as_the_part() {
        assert_eq!((Glyphs::Ascii.bar(0.5, 10), Glyphs::Unicode.bar(1.0, 3)), ("#####     ".to_owned(), "███".to_owned()));
        assert_eq!((Glyphs::Ascii.bar(0.0, 4), Glyphs::Ascii.bar(f64::NAN, 4)), ("    ".to_owned(), "    ".to_owned()));
    }

    #[test]
    fn a_locale_says_what_can_be_shown() {
        let of = |set: &'static [(&str, &str)]| {
            Glyphs::of_locale(|name| set.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(of(&[("LANG", "C.UTF-8")]), Glyphs::Unicode);
        assert_eq!(of(&[("LC_ALL", "C"), ("LANG", "en_US.utf8")]), Glyphs::Ascii);
        assert_eq!((of(&[("LC_ALL", ""), ("LANG", "en_US.utf8")]), of(&[])), (Glyphs::Unicode, Glyphs::Ascii));
    }
}
