//! Tables and words for a terminal: aligned, cut to its width, and free of what would steer it.

use std::io::{self, IsTerminal, Write};

/// Space between columns.
const GAP: usize = 2;

/// A column is not cut below this.
const COLUMN_MIN: usize = 8;

/// What a cell says beside its text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    /// Nothing.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Worth a look.
    Odd,
    /// Refused, dropped or broken.
    Bad,
    /// Of lesser weight.
    Faint,
}

/// A piece of a line.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

/// How standard output is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    /// Columns; `None` where it is no terminal, and nothing is cut.
    pub(super) width: Option<usize>,
    /// Whether tones become colours.
    pub(super) has_colour: bool,
}

/// Rows under a header.
#[derive(Debug)]
pub(super) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Cell {
    /// Text in a tone. What would steer a terminal is escaped.
    pub(super) fn new(text: impl AsRef<str>, tone: Tone) -> Self {
        Self { text: printable(text.as_ref()), tone }
    }

    /// The text, without its tone.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The same, no wider than `width`, its end cut and padded.
    fn write(&self, width: usize, is_last: bool, screen: Screen, out: &mut String) {
        let length = self.text.len();
        let shown = match self.text.get(..width.saturating_sub(1)) {
            Some(start) if length > width => format!("{start}~"),
            Some(_) | None => self.text.clone(),
        };
        let colour = match self.tone {
            Tone::Plain => "",
            Tone::Good => "\x1b[32m",
            Tone::Odd => "\x1b[33m",
            Tone::Bad => "\x1b[31m",
            Tone::Faint => "\x1b[2m",
        };
        let is_coloured = screen.has_colour && !colour.is_empty();
        if is_coloured {
            out.push_str(colour);
        }
        out.push_str(&shown);
        if is_coloured {
            out.push_str("\x1b[0m");
        }
        if !is_last {
            out.push_str(&" ".repeat(width.saturating_sub(shown.len()) + GAP));
        }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

impl Screen {
    /// Standard output as it is.
    pub(super) fn stdout() -> Self {
        let stdout = io::stdout();
        let is_terminal = stdout.is_terminal();
        let size = rustix::termios::tcgetwinsize(&stdout).ok();
        let width = size.map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
        Self {
            width: width.filter(|_| is_terminal),
            has_colour: is_terminal && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// One piece, for a line of its own making.
    pub(super) fn paint(self, text: impl AsRef<str>, tone: Tone) -> String {
        let cell = Cell::new(text, tone);
        let mut out = String::new();
        cell.write(cell.text.len(), true, self, &mut out);
        out
    }
}

impl Table {
    /// No rows yet.
    pub(super) fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// One more row, with as many cells as the header has.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text; the header alone where there are no rows.
    pub(super) fn render(&self, screen: Screen) -> String {
        let mut widths: Vec<usize> = self.header.iter().map(|title| title.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.len());
            }
        }
        if let Some(available) = screen.width {
            fit(&mut widths, available);
        }
        let header: Vec<Cell> =
            self.header.iter().map(|title| Cell::new(title, Tone::Faint)).collect();
        let mut out = String::new();
        for row in std::iter::once(&header).chain(&self.rows) {
            let last = row.len().saturating_sub(1);
            for (place, (cell, width)) in row.iter().zip(&widths).enumerate() {
                cell.write(*width, place == last, screen, &mut out);
            }
            out.push('\n');
        }
        out
    }

    /// Prints it to standard output.
    pub(super) fn print(&self) -> io::Result<()> {
        print(&self.render(Screen::stdout()))
    }
}

/// Writes to standard output; a reader that has seen enough is no error.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// `text` without what steers terminals, reorders text or looks like something else.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            ' '..='~' => out.push(character),
            _ => out.extend(character.escape_unicode()),
        }
    }
    out
}

/// Narrows the widest columns until all fit.
fn fit(widths: &mut [usize], available: usize) {
    let gaps = GAP * widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > available {
        let Some(widest) = widths.iter_mut().max().filter(|width| **width > COLUMN_MIN) else {
            return;
        };
        *widest -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_TERMINAL: Screen = Screen { width: None, has_colour: false };

    #[test]
    fn columns_are_aligned_and_nothing_is_cut_without_a_terminal() {
        let mut table = Table::new(&["POD", "WHY"]);
        table.row(["shop/checkout".into(), "no rule".into()]);
        table.row(["a/b".into(), Cell::new("x".repeat(200), Tone::Bad)]);
        let text = table.render(NO_TERMINAL);
        let expected = format!(
            "POD            WHY\nshop/checkout  no rule\na/b            {}\n",
            "x".repeat(200)
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let mut table = Table::new(&["NAME", "ADDRESS", "WHY"]);
        table.row(["n".repeat(90).into(), "203.0.113.1".into(), "w".repeat(90).into()]);
        let screen = Screen { width: Some(60), has_colour: false };
        for line in table.render(screen).lines() {
            assert!(line.len() <= 60, "{line}");
        }
    }

    #[test]
    fn hostile_text_steers_no_terminal() {
        let hostile = "a\u{1b}[2J\u{202e}b\nc\u{7f}\u{9b}31m";
        let mut table = Table::new(&["NAME"]);
        table.row([Cell::new(hostile, Tone::Bad)]);
        let text = table.render(NO_TERMINAL);
        assert!(text.bytes().all(|octet| matches!(octet, b' '..=b'~' | b'\n')), "{text:?}");
        assert_eq!(text.lines().count(), 2);
    }
}
