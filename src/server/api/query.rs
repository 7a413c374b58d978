//! The query language of the searches, as documented: comparisons joined by `not`, `and`, `or` and parentheses.
//!
//! The operators of a field depend on its type: `=`, `in` and `prefix` for strings (`match` instead of `prefix`
//! for names and descriptions), `=` and `in` for booleans, `=`, `in` and the four inequalities for numbers and
//! times. A time is `yyyy-MM-ddTHH:mm:ss` in UTC.

use std::iter::Peekable;
use std::vec::IntoIter;

use crate::pds::types::FileType;
use crate::server::catalog::records::Node;
use crate::server::clock::parse_utc_ms;
use crate::server::errors::ServiceError;

use super::view::{category, extension};

/// Bound on nested parentheses and `not`.
const DEPTH_MAX: usize = 32;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Comparison {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// How the value of a field is read.
pub(super) enum Getter<T> {
    /// The folder of an object. A recursive search compares all folders above it.
    Parent,
    /// A string with `match` instead of `prefix`.
    Name(fn(&T) -> &str),
    Text(fn(&T) -> &str),
    Number(fn(&T) -> i64),
    Flag(fn(&T) -> bool),
}

/// What can be searched.
pub(super) trait Searchable: Sized {
    /// `None` if there is no such field.
    fn getter(field: &str) -> Option<Getter<Self>>;
}

#[derive(Debug)]
enum Test {
    Number(Comparison, i64),
    NumberIn(Vec<i64>),
    FlagIn(Vec<bool>),
    TextIn(Vec<String>),
    Prefix(String),
    /// In lower case.
    Contains(String),
}

enum Expression<T> {
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
    Term(Getter<T>, Test),
}

/// A parsed query.
pub(super) struct Query<T>(Expression<T>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Lexeme {
    Plain(String),
    Quoted(String),
    Operator(String),
    /// `(`, `)`, `[`, `]` or a comma.
    Mark(char),
}

fn invalid_query(detail: &str) -> ServiceError {
    ServiceError::invalid("query", detail)
}

fn is_plain(c: char) -> bool {
    !c.is_whitespace() && !"=<>!\"'()[],".contains(c)
}

/// Splits into words, quoted strings, operators and marks.
fn tokenize(text: &str) -> Result<Vec<Lexeme>, ServiceError> {
    let mut lexemes = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            quote @ ('"' | '\'') => {
                let mut quoted = String::new();
                loop {
                    match chars.next() {
                        Some(c) if c == quote => break,
                        Some('\\') => quoted.extend(chars.next()),
                        Some(c) => quoted.push(c),
                        None => return Err(invalid_query("A quotation mark is missing.")),
                    }
                }
                lexemes.push(Lexeme::Quoted(quoted));
            }
            '(' | ')' | '[' | ']' | ',' => lexemes.push(Lexeme::Mark(c)),
            '=' | '<' | '>' | '!' => {
                let mut operator = String::from(c);
                operator.extend(chars.next_if_eq(&'='));
                lexemes.push(Lexeme::Operator(operator));
            }
            c => {
                let mut plain = String::from(c);
                while let Some(c) = chars.next_if(|c| is_plain(*c)) {
                    plain.push(c);
                }
                lexemes.push(Lexeme::Plain(plain));
            }
        }
    }
    Ok(lexemes)
}

/// Parses by descent: `or` joins what `and` joins, which joins terms, negations and parentheses.
struct Parser {
    rest: Peekable<IntoIter<Lexeme>>,
    depth: usize,
}

impl Parser {
    /// Consumes the next lexeme if it is this keyword.
    fn takes_word(&mut self, word: &str) -> bool {
        self.rest
            .next_if(|next| matches!(next, Lexeme::Plain(plain) if plain.eq_ignore_ascii_case(word)))
            .is_some()
    }

    fn takes_mark(&mut self, mark: char) -> bool {
        self.rest.next_if_eq(&Lexeme::Mark(mark)).is_some()
    }

    fn any<T: Searchable>(&mut self) -> Result<Expression<T>, ServiceError> {
        let mut parts = vec![self.all()?];
        while self.takes_word("or") {
            parts.push(self.all()?);
        }
        Ok(Expression::Any(parts))
    }

    fn all<T: Searchable>(&mut self) -> Result<Expression<T>, ServiceError> {
        let mut parts = vec![self.unary()?];
        while self.takes_word("and") {
            parts.push(self.unary()?);
        }
        Ok(Expression::All(parts))
    }

    fn unary<T: Searchable>(&mut self) -> Result<Expression<T>, ServiceError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(invalid_query("It is nested too deeply."));
        }
        let parsed = if self.takes_word("not") {
            Expression::Not(Box::new(self.unary()?))
        } else if self.takes_mark('(') {
            let inner = self.any()?;
            if !self.takes_mark(')') {
                return Err(invalid_query("A parenthesis is missing."));
            }
            inner
        } else {
            self.term()?
        };
        self.depth -= 1;
        Ok(parsed)
    }

    fn term<T: Searchable>(&mut self) -> Result<Expression<T>, ServiceError> {
        let Some(Lexeme::Plain(name)) = self.rest.next() else {
            return Err(invalid_query("A term is a field, an operator and a value."));
        };
        let getter = T::getter(&name).ok_or_else(|| invalid_query("There is no such field."))?;
        let test = if self.takes_word("in") {
            values_test(&getter, self.list()?)?
        } else if self.takes_word("prefix") {
            let Getter::Text(_) = getter else { return Err(unsupported()) };
            Test::Prefix(self.value()?)
        } else if self.takes_word("match") {
            let Getter::Name(_) = getter else { return Err(unsupported()) };
            Test::Contains(self.value()?.to_lowercase())
        } else {
            match self.rest.next() {
                Some(Lexeme::Operator(operator)) => comparison_test(&getter, &operator, self.value()?)?,
                _ => return Err(unsupported()),
            }
        };
        Ok(Expression::Term(getter, test))
    }

    fn value(&mut self) -> Result<String, ServiceError> {
        match self.rest.next() {
            Some(Lexeme::Plain(value) | Lexeme::Quoted(value)) => Ok(value),
            _ => Err(invalid_query("A value is missing.")),
        }
    }

    /// `[a, b]`.
    fn list(&mut self) -> Result<Vec<String>, ServiceError> {
        let mut values = Vec::new();
        if self.takes_mark('[') {
            loop {
                values.push(self.value()?);
                if self.takes_mark(']') {
                    return Ok(values);
                }
                if !self.takes_mark(',') {
                    break;
                }
            }
        }
        Err(invalid_query("A list is [value, value]."))
    }
}

fn unsupported() -> ServiceError {
    invalid_query("The field does not have this operator.")
}

fn number_of(text: &str) -> Result<i64, ServiceError> {
    let number = text.parse().ok().or_else(|| parse_utc_ms(text));
    number.ok_or_else(|| invalid_query("The value is neither a number nor yyyy-MM-ddTHH:mm:ss."))
}

fn flag_of(text: &str) -> Result<bool, ServiceError> {
    text.parse().map_err(|_| invalid_query("The value is neither true nor false."))
}

/// Equality with one of some values.
fn values_test<T>(getter: &Getter<T>, values: Vec<String>) -> Result<Test, ServiceError> {
    Ok(match getter {
        Getter::Parent | Getter::Name(_) | Getter::Text(_) => Test::TextIn(values),
        Getter::Number(_) => Test::NumberIn(values.iter().map(|v| number_of(v)).collect::<Result<_, _>>()?),
        Getter::Flag(_) => Test::FlagIn(values.iter().map(|v| flag_of(v)).collect::<Result<_, _>>()?),
    })
}

fn comparison_test<T>(getter: &Getter<T>, operator: &str, value: String) -> Result<Test, ServiceError> {
    let comparison = match operator {
        "=" => Comparison::Equal,
        "<" => Comparison::Less,
        "<=" => Comparison::LessOrEqual,
        ">" => Comparison::Greater,
        ">=" => Comparison::GreaterOrEqual,
        _ => return Err(invalid_query("There is no such operator.")),
    };
    match getter {
        Getter::Number(_) => Ok(Test::Number(comparison, number_of(&value)?)),
        _ if comparison == Comparison::Equal => values_test(getter, vec![value]),
        _ => Err(unsupported()),
    }
}

impl Searchable for Node {
    fn getter(field: &str) -> Option<Getter<Self>> {
        Some(match field {
            "parent_file_id" => Getter::Parent,
            "name" => Getter::Name(|node| &node.name),
            "description" => Getter::Name(|node| node.attrs.description.as_deref().unwrap_or_default()),
            "file_id" => Getter::Text(|node| node.file_id.as_str()),
            "type" => Getter::Text(|node| match node.file_type() {
                FileType::File => "file",
                FileType::Folder => "folder",
            }),
            "file_extension" => Getter::Text(|node| extension(&node.name).unwrap_or_default()),
            "mime_type" => Getter::Text(|node| node.attrs.content_type.as_deref().unwrap_or_default()),
            "status" => Getter::Text(|_| "available"),
            "category" => Getter::Text(|node| if node.is_folder() { "" } else { category(&node.name) }),
            "content_hash" => Getter::Text(|node| node.newest().map_or("", |newest| newest.hash.as_str())),
            "size" => Getter::Number(|node| i64::try_from(node.size()).unwrap_or(i64::MAX)),
            "created_at" => Getter::Number(|node| node.created_ms),
            "updated_at" => Getter::Number(|node| node.updated_ms),
            "hidden" => Getter::Flag(|node| node.attrs.hidden),
            "starred" => Getter::Flag(|node| node.attrs.starred),
            _ => return None,
        })
    }
}

impl<T: Searchable> Query<T> {
    /// Parses a query. The empty query matches every object.
    pub(super) fn parse(text: &str) -> Result<Self, ServiceError> {
        let lexemes = tokenize(text)?;
        if lexemes.is_empty() {
            return Ok(Self(Expression::All(Vec::new())));
        }
        let mut parser = Parser { rest: lexemes.into_iter().peekable(), depth: 0 };
        let parsed = parser.any()?;
        match parser.rest.next() {
            None => Ok(Self(parsed)),
            Some(_) => Err(invalid_query("Terms are joined by and, or and not.")),
        }
    }

    /// `is_in` says whether an object is in a folder, for `parent_file_id`.
    pub(super) fn matches(&self, item: &T, is_in: &dyn Fn(&T, &str) -> bool) -> bool {
        self.0.matches(item, is_in)
    }
}

impl<T> Expression<T> {
    fn matches(&self, item: &T, is_in: &dyn Fn(&T, &str) -> bool) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.matches(item, is_in)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(item, is_in)),
            Self::Not(inner) => !inner.matches(item, is_in),
            Self::Term(Getter::Parent, Test::TextIn(ids)) => ids.iter().any(|id| is_in(item, id)),
            Self::Term(Getter::Parent, _) => false,
            Self::Term(Getter::Name(get) | Getter::Text(get), test) => test.holds_for_text(get(item)),
            Self::Term(Getter::Number(get), test) => test.holds_for_number(get(item)),
            Self::Term(Getter::Flag(get), test) => {
                matches!(test, Test::FlagIn(values) if values.contains(&get(item)))
            }
        }
    }
}

impl Test {
    fn holds_for_text(&self, text: &str) -> bool {
        match self {
            Self::TextIn(values) => values.iter().any(|value| value == text),
            Self::Prefix(start) => text.starts_with(start),
            Self::Contains(part) => text.to_lowercase().contains(part),
            Self::Number(..) | Self::NumberIn(_) | Self::FlagIn(_) => false,
        }
    }

    fn holds_for_number(&self, number: i64) -> bool {
        match self {
            Self::NumberIn(values) => values.contains(&number),
            Self::Number(Comparison::Equal, value) => number == *value,
            Self::Number(Comparison::Less, value) => number < *value,
            Self::Number(Comparison::LessOrEqual, value) => number <= *value,
            Self::Number(Comparison::Greater, value) => number > *value,
            Self::Number(Comparison::GreaterOrEqual, value) => number >= *value,
            Self::FlagIn(_) | Self::TextIn(_) | Self::Prefix(_) | Self::Contains(_) => false,
        }
    }
}

/// Fuzz target: a query, and the name of a node that it is compared with.
#[cfg(any(test, fuzzing))]
pub(in crate::server) fn check_query(text: &str, node: &Node) {
    if let Ok(query) = Query::parse(text) {
        let is_found = query.matches(node, &|_, _| false);
        assert!(is_found || !text.trim().is_empty(), "the empty query matches every object");
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

    fn holds(text: &str) -> bool {
        let query = Query::parse(text).unwrap_or_else(|error| panic!("{text}: {}", error.message));
        query.matches(&node(r#"Ä "x" b.tar"#), &|node, parent| node.parent.as_str() == parent)
    }

    #[test]
    fn operators_follow_the_documentation() {
        for text in [
            "",
            r#"parent_file_id = "root" and name = "Ä \"x\" b.tar""#,
            "name = 'Ä \"x\" b.tar'",
            r#"name match "X" and type="folder" and size < 9"#,
            r#"created_at >= "2019-08-20T00:00:00" and created_at < '2019-08-21T00:00:00'"#,
            "name = a or name match B",
            "name = a or name = b or (type = folder and not (hidden = true))",
            "not name=123",
            "file_extension in ['jpg', 'tar']",
            "type prefix 'fold'",
            // `and` binds more tightly than `or`, `not` more tightly than both.
            "type = folder or name = a and name = b",
            "not name = a and type = folder",
        ] {
            assert!(holds(text), "{text}");
        }
        for text in [
            r#"name match "y""#,
            "not type = 'folder'",
            "(type = folder or name = a) and name = b",
            "size in [1, 2]",
            "starred = true",
        ] {
            assert!(!holds(text), "{text}");
        }
    }

    #[test]
    fn malformed_queries_are_refused() {
        let nested = "(".repeat(40) + "size = 1" + &")".repeat(40);
        for text in [
            "name",
            "name =",
            r#"name = "a" and"#,
            "x = 1",
            r#"name = "a"#,
            "(name = a",
            "name = a)",
            "name in a",
            "name in [a",
            "name in []",
            "name prefix 'a'",
            "size prefix 1",
            "type match a",
            "name < a",
            "type != folder",
            "size = many",
            "hidden = 1",
            "created_at > yesterday",
            "name = a name = b",
            nested.as_str(),
        ] {
            let refused = Query::<Node>::parse(text).err().map(|error| error.code);
            assert_eq!(refused.as_deref(), Some("InvalidParameter.Query"), "{text}");
        }
    }
}
