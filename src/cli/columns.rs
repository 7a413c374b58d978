//! Text in the columns of a terminal. Widths are in cells: a Chinese character takes two.

use unicode_width::UnicodeWidthStr as _;

/// Characters of a short id, if they are unique.
const ID_LEN_MIN: usize = 12;
/// Replaces the middle of a long name. Two cells in some terminals would be an ellipsis character.
const GAP: &str = "...";

/// The width of the terminal on stdout; `None` if stdout is no terminal, or one without a size.
pub(super) fn of_stdout() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// The text with spaces up to this width.
pub(super) fn padded(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(text.width())))
}

/// Cuts a long name in the middle. Its end, which has the extension and distinguishes files, gets two thirds.
pub(super) fn cut(name: &str, columns: usize) -> String {
    if name.width() <= columns {
        return name.to_owned();
    }
    let room = columns.saturating_sub(GAP.width());
    let mut head = 0;
    for end in name.char_indices().map(|(at, c)| at + c.len_utf8()) {
        if name[..end].width() > room / 3 {
            break;
        }
        head = end;
    }
    let (mut tail, room) = (name.len(), room - name[..head].width());
    for (at, _) in name.char_indices().rev() {
        if name[at..].width() > room {
            break;
        }
        tail = at;
    }
    format!("{}{GAP}{}", &name[..head], &name[tail..])
}

/// The lines of a table. The widths are those of the widest cells.
pub(super) fn aligned<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| padded(cell, width));
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
    fn long_name_keeps_beginning_and_end() {
        assert_eq!(cut("/Holiday in Norway/IMG_20244 Sommerurlaub.jpeg", 24), "/Holida...merurlaub.jpeg");
        assert_eq!(cut("/a.txt", 6), "/a.txt");
        let numbered = |n| cut(&format!("/Sommerurlaub am Meer {n}.mov"), 18);
        assert_eq!(
            (numbered(1).as_str(), numbered(2).as_str()),
            ("/Somm...Meer 1.mov", "/Somm...Meer 2.mov")
        );
        for columns in 0..50 {
            for name in [
                "/Holiday in Norway/IMG_20244 Sommerurlaub.jpeg",
                "/照片/二〇二六年夏天在海边的照片合集.jpeg",
            ] {
                assert!(cut(name, columns).width() <= columns.max(3), "{columns}");
            }
        }
    }

    #[test]
    fn wide_characters_count_two_cells() {
        let shown = cut("/二〇二六年夏天在海边的照片.jpeg", 20);
        assert_eq!((shown.as_str(), shown.width()), ("/二〇...的照片.jpeg", 19));
        assert_eq!(cut("文件", 4), "文件");
        assert_eq!(padded("文件", 6), "文件  ");
    }

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
        assert_eq!(
            aligned(&[row("A", "B"), row("long", ""), row("文件", "x")]),
            ["A     B", "long", "文件  x"]
        );
    }
}
