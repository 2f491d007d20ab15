//! containerd's filters: which snapshots a list shows.
//!
//! ```text
//! filter   = selector *( "," selector )          all of them
//! selector = path [ ( "==" | "!=" | "~=" ) value ]
//! path     = field *( "." field )
//! field    = quoted | letter or "_" or digit …
//! value    = quoted | whatever has no space and no comma
//! ```
//! Of several filters one has to match. `~=` takes a regular expression, which may also stand
//! between slashes or bars. Quoted is as in Go: `"…"` with escapes, or between backquotes.
//! Source: containerd's `filters/parser.go` and `filters/scanner.go`.

use regex::Regex;

use super::SnapshotterError;
use crate::metadata::{KeyedKind, KeyedSnapshot};

/// Longest filter that is looked at, in bytes: two keys of 4 KiB, quoted, fit.
const FILTER_MAX: usize = 32 << 10;
/// Bound of a compiled regular expression, in bytes.
const REGEX_MAX: usize = 1 << 20;

/// Several filters, one of which has to match; none at all match everything.
#[derive(Debug, Default)]
pub struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    Differs(String),
    Matches(Regex),
}

impl Filters {
    /// Parses filters.
    ///
    /// # Errors
    /// `Invalid` with the filter and the byte at which it goes wrong.
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self, SnapshotterError> {
        let parse = |text: &S| {
            let text = text.as_ref();
            let mut parser = Parser { text, at: 0 };
            parser.filter().map_err(|what| {
                let shown: String = text.chars().take(200).collect();
                SnapshotterError::Invalid(format!(
                    "filter {shown:?}: at byte {}: {what}",
                    parser.at.min(text.len())
                ))
            })
        };
        filters.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a snapshot is to be shown.
    pub fn matches(&self, snapshot: &KeyedSnapshot) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|one| one.matches(snapshot)))
    }
}

impl Selector {
    fn matches(&self, snapshot: &KeyedSnapshot) -> bool {
        let value = field(snapshot, &self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            Test::Differs(wanted) => value.unwrap_or_default() != wanted,
            Test::Matches(wanted) => wanted.is_match(value.unwrap_or_default()),
        }
    }
}

/// A field by its path; `None` where there is no such field.
///
/// Source: `adaptSnapshot` in containerd's `snapshots/storage/bolt.go`.
fn field<'a>(snapshot: &'a KeyedSnapshot, path: &[String]) -> Option<&'a str> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "kind" => Some(match snapshot.kind {
            KeyedKind::View => "view",
            KeyedKind::Active => "active",
            KeyedKind::Committed => "committed",
        }),
        "name" => Some(snapshot.key.as_str()),
        // Always there: the lowest layer is asked for with parent==""
        "parent" => Some(snapshot.parent.as_deref().unwrap_or_default()),
        "labels" => snapshot.labels.get(&rest.join(".")).map(String::as_str),
        _ => None,
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn spaces(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn filter(&mut self) -> Result<Vec<Selector>, String> {
        if self.text.len() > FILTER_MAX {
            return Err(format!("expected at most {FILTER_MAX} bytes"));
        }
        if self.text.is_empty() {
            return Ok(Vec::new());
        }
        let mut selectors = vec![self.selector()?];
        while self.take(",") {
            selectors.push(self.selector()?);
        }
        match self.rest() {
            "" => Ok(selectors),
            rest => Err(format!("unexpected input {:?}", rest.chars().next().unwrap_or_default())),
        }
    }

    fn selector(&mut self) -> Result<Selector, String> {
        self.spaces();
        let mut path = vec![self.field()?];
        while self.take(".") {
            path.push(self.field()?);
        }
        self.spaces();
        let test = if self.rest().is_empty() || self.rest().starts_with(',') {
            Test::Present
        } else if self.take("==") {
            Test::Equal(self.value(false)?)
        } else if self.take("!=") {
            Test::Differs(self.value(false)?)
        } else if self.take("~=") {
            let pattern = self.value(true)?;
            let regex = regex::RegexBuilder::new(&pattern).size_limit(REGEX_MAX).build();
            Test::Matches(regex.map_err(|e| format!("bad regular expression: {e}"))?)
        } else {
            return Err("expected one of == != ~=".to_owned());
        };
        self.spaces();
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, String> {
        if self.rest().starts_with(['"', '`']) {
            return self.quoted();
        }
        let is_field = |c: char| c.is_alphanumeric() || c == '_';
        let len = self.rest().find(|c| !is_field(c)).unwrap_or(self.rest().len());
        let name = &self.rest()[..len];
        if name.is_empty() {
            return Err("expected the name of a field".to_owned());
        }
        self.at += len;
        Ok(name.to_owned())
    }

    fn value(&mut self, is_pattern: bool) -> Result<String, String> {
        self.spaces();
        match self.rest().chars().next() {
            None => Err("expected a value".to_owned()),
            Some('"' | '`') => self.quoted(),
            Some(quote @ ('/' | '|')) if is_pattern => {
                self.at += 1;
                self.pattern(quote)
            }
            Some(_) => {
                let is_end = |c: char| c == ',' || c.is_whitespace();
                let len = self.rest().find(is_end).unwrap_or(self.rest().len());
                if len == 0 {
                    return Err("expected a value".to_owned());
                }
                let value = self.rest()[..len].to_owned();
                self.at += len;
                Ok(value)
            }
        }
    }

    /// A regular expression up to `quote`, which a backslash may precede within it.
    fn pattern(&mut self, quote: char) -> Result<String, String> {
        let mut pattern = String::new();
        loop {
            let c = self.rest().chars().next().ok_or("the pattern does not end")?;
            self.at += c.len_utf8();
            if c == quote {
                return Ok(pattern);
            }
            if c == '\\' {
                let escaped = self.rest().chars().next().ok_or("the pattern does not end")?;
                self.at += escaped.len_utf8();
                if escaped != quote {
                    pattern.push('\\');
                }
                pattern.push(escaped);
            } else {
                pattern.push(c);
            }
        }
    }

    /// A string of Go: between backquotes as it is, between quotes with escapes.
    fn quoted(&mut self) -> Result<String, String> {
        const UNENDED: &str = "the quoted string does not end";
        if self.take("`") {
            let end = self.rest().find('`').ok_or(UNENDED)?;
            let value = self.rest()[..end].to_owned();
            self.at += end + 1;
            return Ok(value);
        }
        self.at += 1;
        // \x and octal escapes are bytes, which need not be UTF-8 by themselves
        let mut value = Vec::new();
        loop {
            let c = self.rest().chars().next().ok_or(UNENDED)?;
            self.at += c.len_utf8();
            match c {
                '"' => break,
                '\\' => self.escape(&mut value)?,
                c => value.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        String::from_utf8(value).map_err(|_| "the quoted string is not UTF-8".to_owned())
    }

    fn escape(&mut self, value: &mut Vec<u8>) -> Result<(), String> {
        let c = self.rest().chars().next().ok_or("the escape does not end")?;
        self.at += c.len_utf8();
        let plain = match c {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' | '"' => c as u8,
            'x' => {
                let byte = self.digits(2, 16)?;
                value.push(u8::try_from(byte).map_err(|e| e.to_string())?);
                return Ok(());
            }
            '0'..='7' => {
                self.at -= 1;
                let byte = self.digits(3, 8)?;
                value.push(u8::try_from(byte).map_err(|e| e.to_string())?);
                return Ok(());
            }
            'u' | 'U' => {
                let code = self.digits(if c == 'u' { 4 } else { 8 }, 16)?;
                let c = char::from_u32(code).ok_or("no such character")?;
                value.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            c => return Err(format!("unknown escape {c:?}")),
        };
        value.push(plain);
        Ok(())
    }

    fn digits(&mut self, count: usize, radix: u32) -> Result<u32, String> {
        let digits = self.rest().get(..count).ok_or("the escape does not end")?;
        // from_str_radix takes a sign
        if !digits.chars().all(|c| c.is_digit(radix)) {
            return Err(format!("bad digits in an escape: {digits:?}"));
        }
        self.at += count;
        u32::from_str_radix(digits, radix).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn snapshot() -> KeyedSnapshot {
        let labels = [
            ("containerd.io/snapshot.ref", "sha256:abc"),
            ("a.b", "dotted"),
            ("quote\"d", "with, comma"),
        ];
        KeyedSnapshot {
            key: "k8s.io/3/sha256:00".to_owned(),
            id: 1,
            parent: Some("k8s.io/2/up".to_owned()),
            kind: KeyedKind::Committed,
            layer: None,
            labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            created_at_ns: 0,
            updated_at_ns: 0,
            bytes: 0,
            inodes: 0,
        }
    }

    #[test]
    fn what_containerd_asks() {
        let cases = [
            (r#"labels."containerd.io/snapshot.ref"==sha256:abc,parent=="k8s.io/2/up""#, true),
            (r#"labels."containerd.io/snapshot.ref"==sha256:abd"#, false),
            (r#"labels."containerd.io/snapshot.ref""#, true),
            (r#"labels."no.such""#, false),
            (r#"labels."no.such"!=x"#, true),
            ("labels.a.b==dotted", true),
            (r#"labels."quote\"d"=="with, comma""#, true),
            (r#"labels."quote\x22d"=="with\054 comma""#, true),
            ("labels.`quote\"d`==`with, comma`", true),
            ("kind==committed", true),
            ("kind==active", false),
            ("name~=|^k8s.io/3/|", true),
            (r#"name~="sha256:0+$""#, true),
            ("parent", true),
            (r#"parent=="""#, false),
            (r"name~=/^k8s.io\/3\/sha256:\d\d$/", true),
            ("", true),
            (" kind == committed , name ", true),
            ("nothing", false),
            ("kind!=view,kind!=active", true),
        ];
        for (filter, expected) in cases {
            let filters = Filters::parse(&[filter]).expect(filter);
            assert_eq!(filters.matches(&snapshot()), expected, "{filter}");
        }
        let either = Filters::parse(&["kind==view", "parent"]).expect("two");
        assert!(either.matches(&snapshot()), "one of several is enough");
        assert!(Filters::default().matches(&snapshot()), "none lets everything through");
    }

    #[test]
    fn what_is_refused() {
        for filter in [
            "kind=",
            "kind=committed",
            "kind==",
            "==x",
            "name,",
            "name~=/x",
            "labels.\"x",
            "name==\"x",
            "name~=(",
            "name x",
            r#"name=="\q""#,
            r#"name=="\xff""#,
            r#"name=="\400""#,
            "name==\"\\",
        ] {
            let error = Filters::parse(&[filter]).expect_err(filter);
            assert!(matches!(error, SnapshotterError::Invalid(_)), "{filter}: {error}");
        }
        Filters::parse(&["x".repeat(FILTER_MAX + 1)]).expect_err("too long");
        Filters::parse(&[r"name~=(\w{500}){500}"]).expect_err("a huge expression");
    }

    proptest! {
        #[test]
        fn nothing_panics(filter in "[ -~é]{0,40}", tail in "[\\\\\"`/|.,=!~x0-9a-f]{0,20}") {
            let filters = Filters::parse(&[format!("{filter}{tail}")]);
            let _ = filters.map(|filters| filters.matches(&snapshot()));
        }

        #[test]
        fn a_quoted_value_is_found_again(value in "\\PC{1,20}") {
            let mut snapshot = snapshot();
            snapshot.parent = Some(value.clone());
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let filters = Filters::parse(&[format!("parent==\"{quoted}\"")]).expect("filter");
            prop_assert!(filters.matches(&snapshot));
        }
    }
}
