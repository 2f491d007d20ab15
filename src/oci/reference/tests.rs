use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn what_users_type_becomes_the_canonical_name() {
    let table = [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.2", "docker.io/library/nginx:1.2"),
        ("grafana/grafana", "docker.io/grafana/grafana:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
        ("docker://nginx:1.2", "docker.io/library/nginx:1.2"),
        ("docker://ghcr.io/x/y:tag", "ghcr.io/x/y:tag"),
        ("ghcr.io/x/y:tag", "ghcr.io/x/y:tag"),
        ("localhost/a", "localhost/a:latest"),
        ("localhost:5000/a/b:T_1.x-y", "localhost:5000/a/b:T_1.x-y"),
        ("127.0.0.1:80/a", "127.0.0.1:80/a:latest"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("Registry/a", "Registry/a:latest"),
        ("a--b/c__d/e.f-g", "docker.io/a--b/c__d/e.f-g:latest"),
        ("docker://oci:5000/x", "docker://oci:5000/x:latest"),
        ("oci:latest", "oci:latest"),
        ("oci:/srv/x", "oci:/srv/x"),
        ("oci:dir/sub:v1", "oci:dir/sub:v1"),
        ("oci:dir:docker.io/library/nginx:1.2", "oci:dir:docker.io/library/nginx:1.2"),
        ("oci-archive:x.tar", "oci-archive:x.tar"),
        ("oci-archive:/x.tar:v1", "oci-archive:/x.tar:v1"),
        ("docker-archive:x.tar:nginx", "docker-archive:x.tar:docker.io/library/nginx:latest"),
        ("docker-archive:x.tar", "docker-archive:x.tar"),
    ];
    for (typed, canonical) in table {
        let reference: Reference = typed.parse().unwrap_or_else(|e| panic!("{typed}: {e}"));
        assert_eq!(reference.name(), canonical, "{typed}");
        assert_eq!(canonical.parse(), Ok(reference), "{canonical}");
    }
}

#[test]
fn a_digest_takes_the_place_of_the_default_tag() {
    let table = [
        (format!("localhost:5000/a/b@{DIGEST}"), None),
        (format!("localhost:5000/a/b:v1@{DIGEST}"), Some("v1")),
    ];
    for (typed, tag) in table {
        let reference: RegistryReference = typed.parse().unwrap();
        assert_eq!(reference.tag(), tag);
        assert_eq!(reference.target(), DIGEST);
        assert_eq!(reference.repository().host(), "localhost:5000");
        assert_eq!(reference.repository().path(), "a/b");
        assert_eq!(reference.to_string(), typed);
    }
}

#[test]
fn what_is_no_name_is_refused() {
    let long_tag = format!("nginx:{}", "a".repeat(129));
    let long_name = format!("ghcr.io/{}", "a".repeat(250));
    let id = "a".repeat(64);
    let table = [
        ("", "empty"),
        (":tag", "repository"),
        ("nginx:", "tag"),
        ("nginx:-x", "tag"),
        ("nginx:ä", "tag"),
        ("nginx:a b", "tag"),
        (&long_tag, "tag"),
        (&long_name, "255"),
        (&id, "id"),
        ("Nginx", "repository"),
        ("a//b", "repository"),
        ("/a", "repository"),
        ("a/", "repository"),
        ("a/../b", "repository"),
        ("a/-b", "repository"),
        ("a___b", "repository"),
        ("a._b", "repository"),
        ("ghcr.io/", "repository"),
        ("ghcr.io:x/a", "registry"),
        ("ghcr.io:99999/a", "registry"),
        ("-x.io/a", "registry"),
        ("[::1/a", "registry"),
        ("[nonsense]/a", "registry"),
        ("nginx@sha256:12", "sha256"),
        ("nginx@md5:12", "algorithm"),
        ("nginx@", "digest"),
        ("oci:", "directory"),
        ("oci::tag", "directory"),
        ("oci:dir:", "tag"),
        ("oci:dir:a//b", "tag"),
        ("oci:dir:../x", "tag"),
        ("oci:dir:a b", "tag"),
        ("oci:dir:a---b", "tag"),
        ("oci-archive:", "file"),
        ("docker-archive:", "file"),
        ("docker-archive:x:A B", "repository"),
        ("https://ghcr.io/x", "docker://"),
        ("dir:/x", "oci:"),
        ("docker://", "repository"),
    ];
    for (typed, expected) in table {
        let error = typed.parse::<Reference>().expect_err(typed);
        assert!(error.to_string().contains(expected), "{typed}: {error}");
        assert!(!error.hint().is_empty());
    }
}

#[test]
fn hints_suit_the_mistake() {
    let hint = |typed: &str| typed.parse::<Reference>().unwrap_err().hint();
    assert!(hint("https://ghcr.io/x").contains("scheme"));
    assert!(hint("dir:/x").contains("skopeo"));
    assert!(hint("Nginx").contains("lower case"));
}

#[test]
fn paths_are_made_absolute_without_following_links() {
    let cwd = Path::new("/home/user");
    let table = [
        ("oci:images:v1", "oci:/home/user/images:v1"),
        ("oci:./a//b/./c/", "oci:/home/user/a/b/c"),
        ("oci:../x", "oci:/home/user/../x"),
        ("oci:/srv//x:v1", "oci:/srv/x:v1"),
        ("oci-archive:a.tar", "oci-archive:/home/user/a.tar"),
        ("docker-archive:a.tar:b", "docker-archive:/home/user/a.tar:docker.io/library/b:latest"),
        ("nginx", "docker.io/library/nginx:latest"),
    ];
    for (typed, absolute) in table {
        let reference: Reference = typed.parse().unwrap();
        assert_eq!(reference.absolute(cwd).to_string(), absolute);
    }
}

proptest::proptest! {
    #[test]
    fn any_text_gives_a_reference_or_an_error(text in "\\PC{0,40}|[a-zA-Z0-9:/@._\\[\\]-]{0,60}") {
        if let Ok(reference) = text.parse::<Reference>() {
            let again: Reference = reference.name().parse().expect("the canonical form parses");
            assert_eq!(again, reference);
        }
    }
}
