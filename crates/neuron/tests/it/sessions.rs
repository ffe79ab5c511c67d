//! Logins of a connection that carries requests of several callers, one after another or at once.

use serde_json::Value;
use services::sessions::Session;

use super::{Everybody, Stage, Way};

/// Callers that one connection remembers.
const CALLERS_MAX: usize = 8;

async fn call(stage: &Stage, session: &Session, who: &str, method: &str, target: &str) -> Value {
    let way = Way::new(&Everybody, session);
    stage.send(who, method, target, Value::Null, way).await
}

async fn is_let_in(stage: &Stage, session: &Session, who: &str) -> bool {
    let answer = call(stage, session, who, "GET", "/_data").await;
    assert!(answer["s"] == "ok" || answer["v"] == "unauthorized", "{answer}");
    answer["s"] == "ok"
}

/// Ends the first login of somebody, over another connection.
async fn end_first(stage: &Stage, who: &str) {
    let logins = stage.ok(who, "GET", "/_sess", Value::Null).await;
    let target = format!("/_sess?k={}", logins[0].as_str().unwrap());
    assert_eq!(stage.ok(who, "DELETE", &target, Value::Null).await, 1);
}

#[tokio::test]
async fn whose_login_was_ended_is_refused_for_as_long_as_the_connection_lasts() {
    let stage = Stage::new().await;
    let ((elena, _), (lily, _)) = (stage.account("elena").await, stage.account("lily").await);
    for is_last in [true, false] {
        let session = Session::default();
        assert!(is_let_in(&stage, &session, &elena).await);
        if !is_last {
            assert!(is_let_in(&stage, &session, &lily).await);
        }
        assert!(!session.has_ended());
        end_first(&stage, &elena).await;
        assert!(session.has_ended());
        for _ in 0..3 {
            assert!(!is_let_in(&stage, &session, &elena).await, "last: {is_last}");
            assert!(is_let_in(&stage, &session, &lily).await, "nobody ended hers");
        }
        // The same by parameters.
        let (name, secret) = elena.split_once(':').unwrap();
        let target = format!("/_data?ident={name}&secret={secret}");
        assert_eq!(call(&stage, &session, &lily, "GET", &target).await["s"], "ok");
        assert!(is_let_in(&stage, &Session::default(), &elena).await, "another connection");
    }
}

#[tokio::test]
async fn a_connection_remembers_so_many_callers_and_forgets_no_ended_one() {
    let stage = Stage::new().await;
    let session = Session::default();
    let mut callers = Vec::new();
    for at in 0..=CALLERS_MAX {
        callers.push(stage.account(&format!("caller{at}")).await.0);
    }
    assert!(is_let_in(&stage, &session, &callers[0]).await);
    end_first(&stage, &callers[0]).await;
    for caller in &callers[1..] {
        assert!(is_let_in(&stage, &session, caller).await);
    }
    let logins = stage.ok(&callers[1], "GET", "/_sess", Value::Null).await;
    assert_eq!(logins.as_array().unwrap().len(), 1, "the one that asks: {logins}");
    assert!(!is_let_in(&stage, &session, &callers[0]).await);
    for caller in &callers[2..] {
        end_first(&stage, caller).await;
    }
    assert!(!is_let_in(&stage, &session, &callers[1]).await, "there is no room for another one");
}
