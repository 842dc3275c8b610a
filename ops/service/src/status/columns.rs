//! Text widths as a terminal shows them: a character may take two columns, or none.

use unicode_width::UnicodeWidthStr as _;

/// The width of a screen.
pub(super) const COLUMNS: usize = 80;

/// How many columns `text` takes.
pub(super) fn wide(text: &str) -> usize {
    text.width()
}

/// Cuts `text` to at most `columns`. If anything is left out, the last character is an ellipsis. Characters that would
/// move the cursor or end the line become spaces.
pub(super) fn cut(text: &str, columns: usize) -> String {
    let text = text.replace(char::is_control, " ");
    if wide(&text) <= columns {
        return text;
    }
    // Measures whole prefixes, because the width of a character depends on those before it.
    let kept = text
        .char_indices()
        .map(|(at, _)| &text[..at])
        .take_while(|kept| wide(kept) < columns)
        .last();
    format!("{}…", kept.unwrap_or_default())
}

/// Cuts `text`, or appends spaces, to exactly `columns`.
pub(super) fn padded(text: &str, columns: usize) -> String {
    let mut text = cut(text, columns);
    text.push_str(&" ".repeat(columns.saturating_sub(wide(&text))));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_two_columns_counts_as_two() {
        assert_eq!(cut("東京本社", 8), "東京本社");
        assert_eq!(cut("東京本社", 7), "東京本…");
        // A wide character does not fit into the last column, which stays empty.
        assert_eq!(cut("東京本社", 6), "東京…");
        assert_eq!(padded("東京本社", 6), "東京… ");
        assert_eq!(padded("東京", 6), "東京  ");
        assert_eq!(cut("abcdef", 5), "abcd…");
    }

    #[test]
    fn what_takes_no_column_counts_as_none() {
        assert_eq!(cut("e\u{301}e\u{301}", 2), "e\u{301}e\u{301}");
        assert_eq!(wide(&padded("e\u{301}", 4)), 4);
    }

    #[test]
    fn nothing_ends_the_line_or_moves_the_cursor() {
        assert_eq!(cut("a\nb\x1b[2Jc", 80), "a b [2Jc");
    }
}
