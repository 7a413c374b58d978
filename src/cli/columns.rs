//! Tables with aligned columns, and ids that are as short as they can be.

/// Characters of a short id, if they are unique.
const ID_LEN_MIN: usize = 12;

/// The lines of a table. The widths are those of the widest cells.
pub(super) fn aligned<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// The length at which the beginnings of all ids differ.
pub(super) fn short_id_len(ids: &[&str]) -> usize {
    let longest = ids.iter().map(|id| id.chars().count()).max().unwrap_or(0);
    let are_unique = |len: &usize| {
        let mut beginnings: Vec<_> = ids.iter().map(|id| beginning(id, *len)).collect();
        beginnings.sort_unstable();
        beginnings.dedup();
        beginnings.len() == ids.len()
    };
    (ID_LEN_MIN..longest).find(are_unique).unwrap_or(longest.max(ID_LEN_MIN))
}

/// The first `len` characters.
pub(super) fn beginning(id: &str, len: usize) -> &str {
    id.char_indices().nth(len).map_or(id, |(end, _)| &id[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_shown_until_they_differ() {
        let ids = ["0123456789abcdX9", "0123456789abcdY9"];
        assert_eq!(beginning(ids[0], short_id_len(&ids)), "0123456789abcdX");
        assert_eq!(beginning(ids[0], short_id_len(&ids[..1])), "0123456789ab");
        assert_eq!(short_id_len(&["short"]), ID_LEN_MIN);
        assert_eq!(beginning("short", short_id_len(&["same", "same"])), "short");
    }

    #[test]
    fn columns_are_aligned() {
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        assert_eq!(aligned(&[row("A", "B"), row("long", ""), row("é", "x")]), ["A     B", "long", "é     x"]);
    }
}
