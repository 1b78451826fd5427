//! Text from outside, made fit for a terminal and a log line.

/// The longest piece of text that is shown.
const SHOWN_MAX: usize = 400;

/// `text` on one line and without anything that a terminal acts upon; the middle of a long text is
/// left out.
pub fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(2 * SHOWN_MAX));
    let length = text.chars().count();
    let half = SHOWN_MAX / 2;
    for (index, character) in text.chars().enumerate() {
        if length > SHOWN_MAX && (half..length - half).contains(&index) {
            if index == half {
                shown.push_str(&format!(" [{} characters] ", length - SHOWN_MAX));
            }
            continue;
        }
        if is_acted_upon(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Controls, line ends, and what is invisible or turns the direction of what follows.
fn is_acted_upon(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{061c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2069}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_upon_is_escaped() {
        for (text, expected) in [
            ("api.example.com", "api.example.com"),
            ("münchen", "münchen"),
            ("a\x1b[2Jb", "a\\u{1b}[2Jb"),
            ("a\u{9b}31mb", "a\\u{9b}31mb"),
            ("a\nb\tc\0", "a\\nb\\tc\\u{0}"),
            ("a\u{202e}b", "a\\u{202e}b"),
        ] {
            assert_eq!(plain(text), expected);
        }
    }

    #[test]
    fn the_middle_of_a_long_text_is_left_out() {
        let shown = plain(&format!("begin{}end", "ü".repeat(10 << 20)));
        assert!(shown.starts_with("beginü") && shown.ends_with("üend"), "{shown}");
        assert!(shown.contains(&format!("[{} characters]", (10 << 20) + 8 - 400)), "{shown}");
        assert!(shown.chars().count() < 500, "{shown}");
    }
}
