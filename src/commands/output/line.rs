//! A line of parts in different colours, cut where the terminal ends.

use super::screen::{Screen, Tone, display_width};

/// One line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line(Vec<(String, Tone)>);

impl Line {
    /// Returns a line that begins with `text`.
    pub fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self::default().then(text, tone)
    }

    /// Adds `text` as it is. It must be on one line, and free of escape sequences.
    #[must_use]
    pub fn then(mut self, text: impl Into<String>, tone: Tone) -> Self {
        let text = text.into();
        if !text.is_empty() {
            self.0.push((text, tone));
        }
        self
    }

    /// Adds `text` two columns further on; nothing where it is empty.
    #[must_use]
    pub fn gap(self, text: impl Into<String>, tone: Tone) -> Self {
        let text = text.into();
        if text.is_empty() { self } else { self.then("  ", Tone::Plain).then(text, tone) }
    }

    /// Returns the line as it is to be printed: no wider than the terminal, nothing trailing, without a line break.
    pub fn render(&self, screen: &Screen) -> String {
        let mut room = screen.width.unwrap_or(usize::MAX);
        let mut out = String::new();
        for (place, (text, tone)) in self.0.iter().enumerate() {
            let last = place + 1 == self.0.len();
            let text = if last { text.trim_end() } else { text.as_str() };
            let columns = display_width(text);
            if columns > room {
                out.push_str(&screen.paint(&screen.cut(text, room), *tone));
                break;
            }
            room -= columns;
            out.push_str(&screen.paint(text, *tone));
        }
        out
    }
}

/// Returns `text` as lines under `indent`, broken between words where the terminal ends; one line where there is none.
pub fn wrapped(indent: &str, text: &str, tone: Tone, screen: &Screen) -> Vec<Line> {
    // Narrower than this it would be a column of syllables.
    const NARROWEST: usize = 20;
    let room =
        screen.width.map_or(usize::MAX, |width| width.saturating_sub(display_width(indent)).max(NARROWEST));
    let lines = if display_width(text) <= room {
        vec![text.into()]
    } else {
        textwrap::wrap(text, textwrap::Options::new(room))
    };
    lines.into_iter().map(|line| Line::new(indent, Tone::Dim).then(line, tone)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        Line::new("web", Tone::Strong).gap("Failed", Tone::Bad).gap("", Tone::Dim).gap("3m", Tone::Plain)
    }

    #[test]
    fn a_line_is_never_wider_than_the_terminal() {
        for width in 0..16 {
            let screen = Screen { width: Some(width), ..Screen::default() };
            assert!(display_width(&line().render(&screen)) <= width, "{width}");
        }
        assert_eq!(line().render(&Screen::default()), "web  Failed  3m");
        assert_eq!(line().render(&Screen { width: Some(9), ..Screen::default() }), "web  Fai~");
    }

    #[test]
    fn a_long_text_is_broken_between_words_under_its_indent() {
        let screen = Screen { width: Some(24), ..Screen::default() };
        let lines = wrapped("  ", "the image localhost/web:9 is not there", Tone::Plain, &screen);
        let text: Vec<String> = lines.iter().map(|line| line.render(&screen)).collect();
        assert_eq!(text, ["  the image", "  localhost/web:9 is not", "  there"]);
        assert_eq!(wrapped("", "a b", Tone::Plain, &Screen::default()).len(), 1);
    }
}
