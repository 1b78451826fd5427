//! The report for people: one block a problem, wrapped to the terminal, coloured only there.

use std::io::{self, IsTerminal};

use super::report::{Report, Severity, Told};

/// What the output can show.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    has_colour: bool,
    /// Columns; `None` where lines are not broken.
    width: Option<usize>,
}

impl Style {
    /// What standard output can show.
    pub(super) fn of_stdout() -> Self {
        let stdout = io::stdout();
        let is_terminal = stdout.is_terminal();
        let width = rustix::termios::tcgetwinsize(&stdout)
            .ok()
            .map(|size| usize::from(size.ws_col))
            .filter(|width| is_terminal && *width >= 20);
        Self { has_colour: is_terminal && std::env::var_os("NO_COLOR").is_none(), width }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.has_colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn severity(self, severity: Severity) -> String {
        let code = match severity {
            Severity::Error => "1;31",
            Severity::Warning => "1;33",
            Severity::Hint => "1;36",
            Severity::Foreign => "2",
        };
        self.paint(code, &severity.to_string())
    }
}

pub(super) fn write(report: &Report, style: &Style, out: &mut impl io::Write) -> io::Result<()> {
    for told in report.problems.iter().filter(|told| told.severity != Severity::Foreign) {
        block(told, *style, out)?;
    }
    let foreign = report.foreign();
    if !foreign.is_empty() {
        let kinds: Vec<String> =
            foreign.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let text = format!("passed over, as namegate does not act on them: {}", kinds.join(", "));
        wrapped(&text, "", *style, out)?;
    }
    writeln!(out, "{}", report.summary())
}

fn block(told: &Told, style: Style, out: &mut impl io::Write) -> io::Result<()> {
    write!(out, "{}", style.paint("1", &told.file))?;
    if let Some(line) = told.line {
        write!(out, "{}", style.paint("1", &format!(":{line}")))?;
    }
    writeln!(out, ": {}[{}]", style.severity(told.severity), told.code)?;
    let place: Vec<&str> =
        [told.object.as_deref(), told.field.as_deref()].into_iter().flatten().collect();
    if !place.is_empty() {
        wrapped(&place.join(": "), "  ", style, out)?;
    }
    wrapped(&told.message, "  ", style, out)?;
    if let Some(advice) = &told.advice {
        wrapped(&format!("-> {advice}"), "  ", style, out)?;
    }
    writeln!(out)
}

/// `text` in lines of the style's width, each after `indent`; a word that is too long stays whole.
fn wrapped(text: &str, indent: &str, style: Style, out: &mut impl io::Write) -> io::Result<()> {
    let Some(width) = style.width else { return writeln!(out, "{indent}{text}") };
    let mut column = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if column == 0 {
            write!(out, "{indent}{word}")?;
            column = indent.len() + length;
        } else if column + 1 + length <= width {
            write!(out, " {word}")?;
            column += 1 + length;
        } else {
            write!(out, "\n{indent}   {word}")?;
            column = indent.len() + 3 + length;
        }
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str, width: Option<usize>) -> String {
        let mut out = Vec::new();
        wrapped(text, "  ", Style { has_colour: false, width }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_broken_between_words_where_there_is_a_width() {
        assert_eq!(written("one two three four", None), "  one two three four\n");
        assert_eq!(written("one two three four", Some(12)), "  one two\n     three\n     four\n");
        assert_eq!(written("averyveryverylongword", Some(20)), "  averyveryverylongword\n");
    }

    #[test]
    fn colour_is_left_out_where_it_is_not_seen() {
        let style = |has_colour| Style { has_colour, width: None };
        assert_eq!(style(false).severity(Severity::Error), "error");
        assert_eq!(style(true).severity(Severity::Error), "\x1b[1;31merror\x1b[0m");
    }
}
