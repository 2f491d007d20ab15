use std::{fs, os::unix::fs::PermissionsExt as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::*;

fn password(user: &str, secret: &str) -> Credential {
    Credential::Password { user: user.to_owned(), secret: secret.to_owned() }
}

fn auth(pair: &str) -> Value {
    json!({ "auth": STANDARD.encode(pair) })
}

fn of(dir: &Path, config: &Value) -> UserCredentials {
    let file = dir.join("config.json");
    fs::write(&file, config.to_string()).unwrap();
    UserCredentials { files: vec![file] }
}

#[test]
fn the_environment_names_the_files() {
    let of = |set: &[(&str, &str)]| {
        let set: Vec<_> = set.iter().map(|(k, v)| ((*k).to_owned(), OsString::from(v))).collect();
        let found = UserCredentials::of(|name| {
            set.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        });
        found.files.into_iter().map(|f| f.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let home = ("HOME", "/h");
    assert_eq!(
        of(&[home, ("XDG_RUNTIME_DIR", "/run/1")]),
        [
            "/h/.docker/config.json",
            "/run/1/containers/auth.json",
            "/h/.config/containers/auth.json",
        ]
    );
    assert_eq!(
        of(&[home, ("DOCKER_CONFIG", "/d"), ("XDG_CONFIG_HOME", "/c")]),
        ["/d/config.json", "/c/containers/auth.json",]
    );
    assert_eq!(of(&[home, ("REGISTRY_AUTH_FILE", "/a.json")]), ["/a.json"]);
    assert_eq!(of(&[]), [""; 0]);
}

#[tokio::test]
async fn entries_are_found_however_they_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({ "auths": {
        "https://index.docker.io/v1/": auth("hub:a"),
        "https://old.example/v1/": auth("old:b:c"),
        "r.example:5000": { "identitytoken": "refresh", "auth": STANDARD.encode("u:") },
        "token.example": { "registrytoken": "bearer" },
        "plain.example": { "username": "p", "password": "q" },
        "padded.example": auth("z:secret\0\0\0"),
        "empty.example": {},
        "quay.io/team": auth("team:x"),
    }});
    let user = of(dir.path(), &config);
    let table = [
        ("docker.io", Some(password("hub", "a"))),
        ("old.example", Some(password("old", "b:c"))),
        ("r.example:5000", Some(Credential::Identity("refresh".to_owned()))),
        ("token.example", Some(Credential::Token("bearer".to_owned()))),
        ("plain.example", Some(password("p", "q"))),
        ("padded.example", Some(password("z", "secret"))),
        ("empty.example", None),
        ("quay.io", None),
        ("r.example", None),
    ];
    for (host, expected) in table {
        assert_eq!(user.find(host).await.unwrap(), expected, "{host}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_told_without_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let user = of(dir.path(), &json!({ "auths": { "a.example": { "auth": "sesame!" } } }));
    let error = user.find("a.example").await.unwrap_err();
    assert!(error.message.contains("config.json: auth of a.example"), "{error}");
    fs::write(dir.path().join("config.json"), "{\"auths\": sesame}").unwrap();
    let error = user.find("a.example").await.unwrap_err();
    assert!(error.message.contains("no JSON at line 1") && !error.message.contains("sesame"));
    fs::write(dir.path().join("config.json"), " \n").unwrap();
    assert_eq!(user.find("a.example").await.unwrap(), None);
}

#[tokio::test]
async fn a_login_is_kept_and_the_rest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "psFormat": "x",
        "auths": { "https://r.example/v1/": auth("old:old"), "other.example": auth("o:p") },
        "unknown": { "b": 1, "a": 2 },
    });
    let user = of(dir.path(), &config);
    let file = dir.path().join("config.json");
    let link = dir.path().join("link.json");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let user = UserCredentials { files: vec![link.clone(), user.files[0].clone()] };
    let kept = user.keep("r.example", "ann", &password("ann", "sesame")).await.unwrap();
    assert_eq!(kept, KeptIn::File(link.clone()));
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    let text = fs::read_to_string(&file).unwrap();
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(found["auths"]["r.example"], auth("ann:sesame"));
    assert_eq!(found["auths"].as_object().unwrap().len(), 2);
    let keys: Vec<_> = found.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["psFormat", "auths", "unknown"]);
    assert!(text.contains("\"b\": 1,\n    \"a\": 2"), "{text}");

    let identity = Credential::Identity("refresh".to_owned());
    user.keep("docker.io", "ann", &identity).await.unwrap();
    assert_eq!(user.find("docker.io").await.unwrap(), Some(identity));
    assert!(user.forget("docker.io").await.unwrap());
    assert!(!user.forget("docker.io").await.unwrap());
    assert_eq!(user.find("other.example").await.unwrap(), Some(password("o", "p")));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file is left");

    let fresh = UserCredentials { files: vec![dir.path().join("new/config.json")] };
    assert!(!fresh.forget("r.example").await.unwrap());
    fresh.keep("r.example", "ann", &password("ann", "sesame")).await.unwrap();
    assert_eq!(fresh.find("r.example").await.unwrap(), Some(password("ann", "sesame")));
    let mode = fs::metadata(dir.path().join("new")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
}

#[tokio::test]
async fn a_helper_that_is_missing_or_misnamed_is_told() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["is-not-installed-here", "../../bin/sh"] {
        let user = of(dir.path(), &json!({ "credHelpers": { "r.example": name } }));
        let error = user.find("r.example").await.unwrap_err();
        assert_eq!(error.class, Class::Unavailable);
        assert!(error.message.contains(&format!("docker-credential-{name} get failed")), "{error}");
        assert_eq!(user.find("other.example").await.unwrap(), None);
    }
}
