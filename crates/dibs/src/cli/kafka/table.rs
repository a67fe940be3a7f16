//! Columns for people.

/// Lines of left-aligned columns, each as wide as its longest cell, the last not padded.
pub(super) fn columns(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count());
        cells.max().unwrap_or(0).max(header[i].len()).max(if i + 1 < header.len() { 9 } else { 0 })
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count()) + 1));
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    };
    let mut out = line(&mut header.iter().copied());
    for row in rows {
        out.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::columns;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = vec![vec!["a-long-name-here".to_owned(), "1".to_owned(), "x".to_owned()]];
        let expected = "GROUP            N         END\na-long-name-here 1         x\n";
        assert_eq!(columns(&["GROUP", "N", "END"], &rows), expected);
    }
}
