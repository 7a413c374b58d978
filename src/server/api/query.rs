//! The query language of `file/search`, reduced to comparisons joined by `and`.

use crate::pds::types::FileType;
use crate::server::catalog::records::Node;
use crate::server::clock::rfc3339;
use crate::server::errors::ServiceError;

use super::view::category;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Substring match, case-insensitive.
    Match,
}

/// A parsed query. All terms must match.
#[derive(Debug, Default)]
pub(super) struct Query {
    terms: Vec<(String, Comparison, String)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Lexeme {
    Plain(String),
    Quoted(String),
    Operator(String),
}

fn invalid_query(detail: &str) -> ServiceError {
    ServiceError::invalid("query", detail)
}

/// Splits into words, quoted strings and operators.
fn tokenize(text: &str) -> Result<Vec<Lexeme>, ServiceError> {
    let mut lexemes = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '"' => {
                let mut quoted = String::new();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => quoted.extend(chars.next()),
                        Some(c) => quoted.push(c),
                        None => return Err(invalid_query("A quotation mark is missing.")),
                    }
                }
                lexemes.push(Lexeme::Quoted(quoted));
            }
            '=' | '<' | '>' | '!' => {
                let mut operator = String::from(c);
                operator.extend(chars.next_if_eq(&'='));
                lexemes.push(Lexeme::Operator(operator));
            }
            c => {
                let mut plain = String::from(c);
                let is_plain = |c: &char| !c.is_whitespace() && !"=<>!\"".contains(*c);
                while let Some(c) = chars.next_if(is_plain) {
                    plain.push(c);
                }
                lexemes.push(Lexeme::Plain(plain));
            }
        }
    }
    Ok(lexemes)
}

impl Query {
    /// Parses a query. The empty query matches every object.
    pub(super) fn parse(text: &str) -> Result<Self, ServiceError> {
        let lexemes = tokenize(text)?;
        let mut terms = Vec::new();
        for (index, chunk) in lexemes.chunks(4).enumerate() {
            let (term, joint) = chunk.split_at(chunk.len().min(3));
            let [Lexeme::Plain(field), comparison, value] = term else {
                return Err(invalid_query("A term is a field, a comparison and a value."));
            };
            let is_last = (index + 1) * 4 >= lexemes.len();
            let is_joined = matches!(joint, [Lexeme::Plain(and)] if and.eq_ignore_ascii_case("and"));
            if is_last != joint.is_empty() || (!is_last && !is_joined) {
                return Err(invalid_query("Terms are joined by and."));
            }
            let comparison = match comparison {
                Lexeme::Operator(operator) => match operator.as_str() {
                    "=" | "==" => Comparison::Equal,
                    "!=" => Comparison::NotEqual,
                    "<" => Comparison::Less,
                    "<=" => Comparison::LessOrEqual,
                    ">" => Comparison::Greater,
                    ">=" => Comparison::GreaterOrEqual,
                    _ => return Err(invalid_query("There is no such comparison.")),
                },
                Lexeme::Plain(word) if word.eq_ignore_ascii_case("match") => Comparison::Match,
                _ => return Err(invalid_query("There is no such comparison.")),
            };
            let value = match value {
                Lexeme::Plain(value) | Lexeme::Quoted(value) => value.clone(),
                Lexeme::Operator(_) => return Err(invalid_query("A value is missing.")),
            };
            if field_of(field, None).is_none() {
                return Err(invalid_query("There is no such field."));
            }
            terms.push((field.clone(), comparison, value));
        }
        Ok(Self { terms })
    }

    pub(super) fn matches(&self, node: &Node) -> bool {
        self.terms.iter().all(|(field, comparison, wanted)| {
            field_of(field, Some(node)).is_some_and(|value| compare_values(&value, *comparison, wanted))
        })
    }
}

/// The value of a field; an empty value without a node. `None` if the field does not exist.
fn field_of(field: &str, node: Option<&Node>) -> Option<String> {
    let value: fn(&Node) -> String = match field {
        "parent_file_id" => |node| node.parent.to_string(),
        "file_id" => |node| node.file_id.to_string(),
        "name" => |node| node.name.clone(),
        "type" => |node| if node.file_type() == FileType::File { "file".into() } else { "folder".into() },
        "status" => |_| "available".into(),
        "category" => |node| if node.is_folder() { String::new() } else { category(&node.name).into() },
        "content_hash" => |node| node.newest().map(|newest| newest.hash.clone()).unwrap_or_default(),
        "size" => |node| node.size().to_string(),
        "hidden" => |node| node.attrs.hidden.to_string(),
        "starred" => |node| node.attrs.starred.to_string(),
        "created_at" => |node| rfc3339(node.created_ms),
        "updated_at" => |node| rfc3339(node.updated_ms),
        "description" => |node| node.attrs.description.clone().unwrap_or_default(),
        _ => return None,
    };
    Some(node.map(value).unwrap_or_default())
}

fn compare_values(value: &str, comparison: Comparison, wanted: &str) -> bool {
    let ordering = match (value.parse::<u64>(), wanted.parse::<u64>()) {
        (Ok(value), Ok(wanted)) => value.cmp(&wanted),
        _ => value.cmp(wanted),
    };
    match comparison {
        Comparison::Equal => value == wanted,
        Comparison::NotEqual => value != wanted,
        Comparison::Less => ordering.is_lt(),
        Comparison::LessOrEqual => ordering.is_le(),
        Comparison::Greater => ordering.is_gt(),
        Comparison::GreaterOrEqual => ordering.is_ge(),
        Comparison::Match => value.to_lowercase().contains(&wanted.to_lowercase()),
    }
}

/// Fuzz target: a query, and the name of a node that it is compared with.
#[cfg(any(test, fuzzing))]
pub(in crate::server) fn check_query(text: &str, node: &Node) {
    if let Ok(query) = Query::parse(text) {
        let is_found = query.matches(node);
        assert!(is_found || !query.terms.is_empty(), "the empty query matches every object");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DriveId, FileId};
    use crate::server::catalog::records::{ClientAttrs, NodeKind};

    fn node(name: &str) -> Node {
        Node {
            file_id: FileId::new("f").unwrap(),
            drive_id: DriveId::new("1").unwrap(),
            parent: FileId::root(),
            name: name.into(),
            kind: NodeKind::Folder,
            created_ms: 1_566_283_887_292,
            updated_ms: 0,
            trashed_ms: None,
            attrs: ClientAttrs::default(),
        }
    }

    #[test]
    fn terms_are_joined_by_and() {
        let holds = |text: &str| Query::parse(text).unwrap().matches(&node(r#"Ä "x" b"#));
        assert!(holds(""));
        assert!(holds(r#"parent_file_id = "root" and name = "Ä \"x\" b""#));
        assert!(holds(r#"name match "X" and type="folder" and size < 9"#));
        assert!(holds(r#"created_at >= "2019-08-20T00:00:00""#));
        assert!(!holds(r#"name match "y""#) && !holds(r#"type != "folder""#));
        for text in
            ["name", "name =", r#"name = "a" or name = "b""#, r#"name = "a" and"#, "x = 1", r#"name = "a"#]
        {
            assert!(Query::parse(text).is_err(), "{text}");
        }
    }
}
