//! Tables as kubectl prints them: padded columns, no lines.

use super::screen::{Screen, Tone, display_width};

/// Between two columns.
const GAP: usize = 3;

/// The last column is shortened to no fewer columns than these.
const LEAST: usize = 8;

/// One cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// Returns a cell with `text` in the colour of `tone`. The text must be on one line, and free of escape sequences.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// A table that is printed part by part: the widths that were once found only grow.
#[derive(Clone, Debug)]
pub struct Table {
    headers: Vec<&'static str>,
    widths: Vec<usize>,
    rows: Vec<Vec<Cell>>,
    begun: bool,
}

impl Table {
    /// Returns an empty table with these columns.
    pub fn new(headers: &[&'static str]) -> Self {
        let widths = headers.iter().map(|header| display_width(header)).collect();
        Self { headers: headers.to_vec(), widths, rows: Vec::new(), begun: false }
    }

    /// Makes a column at least so wide, so that what is printed later does not widen it.
    pub fn reserve(&mut self, header: &str, width: usize) {
        let columns = self.headers.iter().zip(&mut self.widths).filter(|(name, _)| **name == header);
        columns.for_each(|(_, reserved)| *reserved = (*reserved).max(width));
    }

    /// Adds a row. Empty cells are shown as `-`.
    pub fn push(&mut self, row: Vec<Cell>) {
        for (width, cell) in self.widths.iter_mut().zip(&row) {
            *width = (*width).max(display_width(&cell.text));
        }
        self.rows.push(row);
    }

    /// Returns the rows that were not taken yet as text, under the headers the first time.
    pub fn take(&mut self, screen: &Screen) -> String {
        let mut out = String::new();
        if !self.begun {
            let headers: Vec<Cell> =
                self.headers.iter().map(|header| Cell::toned(*header, Tone::Strong)).collect();
            self.line(&headers, screen, &mut out);
            self.begun = true;
        }
        for row in std::mem::take(&mut self.rows) {
            self.line(&row, screen, &mut out);
        }
        out
    }

    fn line(&self, row: &[Cell], screen: &Screen, out: &mut String) {
        let last = self.headers.len().saturating_sub(1);
        let mut taken = 0;
        for (place, cell) in row.iter().enumerate().take(last + 1) {
            let text = if cell.text.is_empty() { "-" } else { cell.text.as_str() };
            let room = screen.width.map(|width| width.saturating_sub(taken));
            let wanted = match room {
                // A narrow terminal: what does not fit is cut, and nothing follows it.
                Some(room) if place == last => screen.cut(text, room.max(LEAST.min(room))),
                Some(room) => screen.cut(text, room),
                None => text.to_owned(),
            };
            let columns = display_width(&wanted);
            out.push_str(&screen.paint(&wanted, cell.tone));
            let full = self.widths.get(place).copied().unwrap_or_default() + GAP;
            taken += full;
            if place == last || screen.width.is_some_and(|width| taken >= width) {
                break;
            }
            out.extend(std::iter::repeat_n(' ', full.saturating_sub(columns)));
        }
        while out.ends_with(' ') {
            out.pop();
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["NAME", "PHASE", "CAUSE"]);
        table.push(vec!["web".into(), Cell::toned("Failed", Tone::Bad), "localhost/web:9: not found".into()]);
        table.push(vec!["データ".into(), "Complete".into(), "".into()]);
        table
    }

    #[test]
    fn columns_are_padded_and_nothing_trails() {
        insta::assert_snapshot!(table().take(&Screen::default()), @r"
        NAME     PHASE      CAUSE
        web      Failed     localhost/web:9: not found
        データ   Complete   -
        ");
    }

    #[test]
    fn on_a_narrow_terminal_no_line_is_wider_than_it() {
        for width in 0..60 {
            let screen = Screen { width: Some(width), unicode: true, ..Screen::default() };
            let text = table().take(&screen);
            assert_eq!(text.lines().count(), 3, "{width}: {text}");
            for line in text.lines() {
                assert!(display_width(line) <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn what_comes_later_keeps_the_columns_and_has_no_headers() {
        let mut table = table();
        table.take(&Screen::default());
        table.push(vec!["a".into(), "Paused".into(), "x".into()]);
        assert_eq!(table.take(&Screen::default()), "a        Paused     x\n");
        assert_eq!(table.take(&Screen::default()), "");
    }
}
