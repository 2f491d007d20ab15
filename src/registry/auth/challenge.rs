//! The challenge of a registry: what it wants to see, and where that can be had.
//!
//! Source: RFC 9110, section 11; distribution's token authentication specification.

use std::collections::HashMap;

use reqwest::header::{GetAll, HeaderValue};

/// How a registry wants to be told who asks.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::registry) enum Challenge {
    /// A token of a token server.
    Bearer(Bearer),
    /// A user's name and password with every request.
    Basic,
}

/// Where a bearer token can be had.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::registry) struct Bearer {
    pub(in crate::registry) realm: String,
    pub(in crate::registry) service: Option<String>,
    pub(in crate::registry) scope: Option<String>,
}

impl Challenge {
    /// The best of the `WWW-Authenticate` headers: a bearer challenge with a realm, else basic.
    pub(in crate::registry) fn best(headers: GetAll<'_, HeaderValue>) -> Option<Self> {
        let texts = headers.iter().filter_map(|value| value.to_str().ok());
        let all: Vec<_> = texts.flat_map(parse).collect();
        let basic = all.iter().any(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
        let bearer = all.into_iter().find_map(|(scheme, mut parameters)| {
            if !scheme.eq_ignore_ascii_case("bearer") {
                return None;
            }
            Some(Bearer {
                realm: parameters.remove("realm")?,
                service: parameters.remove("service"),
                scope: parameters.remove("scope"),
            })
        });
        bearer.map(Self::Bearer).or(basic.then_some(Self::Basic))
    }
}

/// The challenges of one header: scheme and parameters, names in lower case.
///
/// A comma separates both challenges and parameters: a word followed by `=` is a parameter, any
/// other begins a challenge.
fn parse(header: &str) -> Vec<(String, HashMap<String, String>)> {
    let mut challenges: Vec<(String, HashMap<String, String>)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if rest.is_empty() {
            return challenges;
        }
        let Some(value) = after.trim_start_matches([' ', '\t']).strip_prefix('=') else {
            challenges.push((word.to_owned(), HashMap::new()));
            rest = after;
            continue;
        };
        let (value, after) = parameter(value.trim_start_matches([' ', '\t']));
        if let Some((_, parameters)) = challenges.last_mut() {
            parameters.entry(word.to_ascii_lowercase()).or_insert(value);
        }
        rest = after;
    }
}

/// A parameter's value, quoted or not, and what follows it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

    use super::*;

    fn best(headers: &[&str]) -> Option<Challenge> {
        let mut map = HeaderMap::new();
        for header in headers {
            map.append(WWW_AUTHENTICATE, header.parse().unwrap());
        }
        Challenge::best(map.get_all(WWW_AUTHENTICATE))
    }

    #[test]
    fn challenges_are_parsed() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer(Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            }))
        };
        let full = || bearer("https://a/t", Some("s"), Some("repository:x/y:pull,push"));
        let table: Vec<(&[&str], Option<Challenge>)> = vec![
            (
                &[r#"Bearer realm="https://a/t",service="s",scope="repository:x/y:pull,push""#],
                full(),
            ),
            (
                &[r#"bearer  Realm = "https://a/t" , service=s,scope="repository:x/y:pull,push" "#],
                full(),
            ),
            (
                &[
                    r#"Basic realm="x", Bearer realm="https://a/t",service="s",scope="repository:x/y:pull,push""#,
                ],
                full(),
            ),
            (
                &["Basic realm=x", r#"Bearer realm="https://a/t""#],
                bearer("https://a/t", None, None),
            ),
            (&[r#"Bearer realm="a\"b\\c",realm="second""#], bearer(r#"a"b\c"#, None, None)),
            (&[r#"Negotiate dG9rZW4=, Bearer realm=u"#], bearer("u", None, None)),
            (&[r#"Bearer realm="unterminated"#], bearer("unterminated", None, None)),
            (&["Bearer", "basic"], Some(Challenge::Basic)),
            (&["Bearer"], None),
            (&[r#"Basic realm="x""#], Some(Challenge::Basic)),
            (&["=,=", ""], None),
            (&[], None),
        ];
        for (headers, expected) in table {
            assert_eq!(best(headers), expected, "{headers:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_parsed_without_panic(text in "\\PC{0,60}|[a-z =\",\\\\]{0,60}") {
            let mut parameters = 0;
            for (scheme, found) in parse(&text) {
                assert!(!scheme.contains(' '));
                parameters += found.len();
            }
            assert!(parameters <= text.len());
        }
    }
}
