//! Tokens, and access that is refused.

use super::*;

/// A registry that wants tokens, with its token server; `life` is what it says of their life.
fn guarded(life: u64) -> Server {
    Server::start(move |number, seen| {
        let host = &seen.headers["host"];
        if let Some(query) = seen.path.strip_prefix("/token?") {
            assert_eq!(query, "service=the+registry&scope=repository%3Aa%2Fb%3Apull");
            assert!(!seen.headers.contains_key("authorization"));
            let body = format!(r#"{{"access_token":"t{number}","expires_in":{life}}}"#);
            return Reply::new("200 OK", &[("Content-Type", "application/json")], body.as_bytes());
        }
        if seen.headers.get("authorization").is_some_and(|token| token.starts_with("Bearer t")) {
            return Reply::new("200 OK", &[TYPED], MANIFEST);
        }
        let challenge = format!(
            r#"Bearer realm="http://{host}/token",service="the registry",scope="repository:a/b:pull""#
        );
        Reply::new("401 Unauthorized", &[("WWW-Authenticate", &challenge)], b"{}")
    })
}

#[tokio::test]
async fn a_token_is_fetched_once_and_used_until_it_expires() {
    let paths = |server: &Server| -> Vec<String> {
        let path = |seen: Seen| seen.path.split(['?', '/']).nth(1).unwrap().to_owned();
        server.seen().into_iter().map(path).collect()
    };
    let server = guarded(300);
    let (client, reference) = (client(), reference(&server, "a/b:v1"));
    for _ in 0..3 {
        assert_eq!(client.resolve(&reference).await.unwrap().1, MANIFEST);
    }
    assert_eq!(paths(&server), ["v2", "token", "v2", "v2", "v2"]);

    let server = guarded(0);
    let reference = self::reference(&server, "a/b:v1");
    for _ in 0..2 {
        assert_eq!(client.resolve(&reference).await.unwrap().1, MANIFEST);
    }
    assert_eq!(paths(&server), ["v2", "token", "v2", "v2", "token", "v2"]);
}

#[tokio::test]
async fn a_refused_token_is_replaced_once() {
    // The first token is refused from its second use on, as a registry that was restarted does
    let server = Server::start(|number, seen| {
        if seen.path.starts_with("/token") {
            let body = format!(r#"{{"token":"t{number}"}}"#);
            return Reply::new("200 OK", &[], body.as_bytes());
        }
        let token = seen.headers.get("authorization").map(String::as_str);
        if number < 3 && token == Some("Bearer t1") || token == Some("Bearer t4") {
            return Reply::new("200 OK", &[TYPED], MANIFEST);
        }
        let challenge = format!(r#"Bearer realm="http://{}/token""#, seen.headers["host"]);
        Reply::new("401 Unauthorized", &[("WWW-Authenticate", &challenge)], b"")
    });
    let (client, reference) = (client(), reference(&server, "a/b:v1"));
    client.resolve(&reference).await.unwrap();
    client.resolve(&reference).await.unwrap();
    let seen = server.seen();
    assert_eq!(seen.len(), 6);
    assert!(seen[1].path.contains("scope=repository%3Aa%2Fb%3Apull"), "{}", seen[1].path);
}

#[tokio::test]
async fn access_that_is_refused_is_told() {
    let server = Server::start(|_, seen| {
        let realm =
            |path: &str| format!(r#"Bearer realm="http://{}/{path}""#, seen.headers["host"]);
        let refuse = |challenge: &str| {
            let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#;
            Reply::new("401 Unauthorized", &[("WWW-Authenticate", challenge)], body)
        };
        let first = seen.path.split(['?', '/']).find(|word| !["", "v2"].contains(word));
        match first.unwrap_or_default() {
            "basic" => refuse(r#"Basic realm="x""#),
            "bare" => Reply::new("401 Unauthorized", &[], b""),
            "forbidden" => Reply::new("403 Forbidden", &[], b""),
            "never" => refuse(&realm("good")),
            "good" => Reply::new("200 OK", &[], br#"{"token":"t"}"#),
            "denied" => refuse(&realm("no")),
            "no" => Reply::new("401 Unauthorized", &[], b""),
            "portal" => refuse(&realm("html")),
            "html" => Reply::new("200 OK", &[("Content-Type", "text/html")], b"<html>"),
            "void" => refuse(&realm("none")),
            "none" => Reply::new("200 OK", &[], b"{}"),
            "injected" => refuse(&realm("crlf")),
            "crlf" => Reply::new("200 OK", &[], br#"{"token":"a\r\nX: y"}"#),
            "lost" => refuse(&realm("gone")),
            "gone" => Reply::new("404 Not Found", &[], b"no such page"),
            "file" => refuse(r#"Bearer realm="file:///etc/passwd""#),
            other => panic!("{other}"),
        }
    });
    let client = client();
    let table = [
        ("basic", "refuses access to", "who are you (UNAUTHORIZED)"),
        ("bare", "refuses access to", "unauthorized"),
        ("forbidden", "refuses access to", "forbidden"),
        ("never", "refuses access to", "who are you"),
        ("denied", "refuses access to", "unauthorized"),
        ("portal", "token for", "no JSON"),
        ("void", "token for", "expected a token, found \"none\""),
        ("injected", "token for", "no header can hold"),
        ("lost", "/gone: expected status 200, found 404", "no such page"),
        ("file", "token for", "expected a realm with an https URL"),
    ];
    for (name, expected, detail) in table {
        let error = client.resolve(&reference(&server, name)).await.unwrap_err();
        let message = error.to_string();
        assert!(message.contains(expected) && message.contains(detail), "{name}: {message}");
    }
}

#[tokio::test]
async fn a_token_server_out_of_order_is_asked_again() {
    let server = Server::start(|number, seen| match () {
        () if seen.headers.get("authorization").is_some_and(|token| token == "Bearer good") => {
            Reply::new("200 OK", &[TYPED], MANIFEST)
        }
        // Asked three times: down, busy, well
        () if seen.path.starts_with("/token") => match number {
            1 => Reply::new("503 Service Unavailable", &[], b""),
            3 => Reply::new("429 Too Many Requests", &[("Retry-After", "0")], b""),
            _ => Reply::new("200 OK", &[], br#"{"token":"good"}"#),
        },
        () => {
            let challenge = format!(r#"Bearer realm="http://{}/token""#, seen.headers["host"]);
            Reply::new("401 Unauthorized", &[("WWW-Authenticate", &challenge)], b"")
        }
    });
    let (client, reference) = (client(), reference(&server, "a/b:v1"));
    assert_eq!(client.resolve(&reference).await.unwrap().1, MANIFEST);
    let paths: Vec<_> = server.seen().iter().map(|seen| seen.path.starts_with("/token")).collect();
    assert_eq!(paths, [false, true, false, true, false, true, false]);
}
