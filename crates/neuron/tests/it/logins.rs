//! Many logins at a time: right ones are let in however many come, wrong ones are counted.

use std::sync::atomic::Ordering::SeqCst;

use serde_json::{Value, json};

use super::{SYS, Stage};

/// What each of these credentials is told, all at a time.
async fn at_once(stage: &Stage, credentials: &[String]) -> Vec<String> {
    let (answers, mut told) = tokio::sync::mpsc::unbounded_channel();
    let all = credentials.iter().enumerate().map(|(at, credentials)| {
        let answers = answers.clone();
        Box::pin(async move {
            let answer = stage.call(credentials, "GET", "/_data", Value::Null).await;
            let word = if answer["s"] == "ok" { &answer["s"] } else { &answer["v"] };
            answers.send((at, word.as_str().unwrap().to_owned())).unwrap();
        })
    });
    let mut all: Vec<_> = all.collect();
    std::future::poll_fn(|context| {
        all.retain_mut(|one| one.as_mut().poll(context).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    drop((all, answers));
    let mut words = vec![String::new(); credentials.len()];
    while let Some((at, word)) = told.recv().await {
        words[at] = word;
    }
    words
}

/// As from a pool of connections after a restart.
#[tokio::test]
async fn equal_logins_are_looked_at_once() {
    let stage = Stage::new().await;
    stage.account("elena").await;
    let chosen = json!({ "k": "elena", "v": { "secret": "a chosen one" } });
    stage.ok(SYS, "POST", "/_acc/accounts", chosen).await;
    let right = vec!["elena:a chosen one".to_owned(); 30];
    assert_eq!(at_once(&stage, &right).await, vec!["ok"; 30]);
    assert_eq!(stage.looks.swap(0, SeqCst), 1);
    let wrong = vec!["elena:another one".to_owned(); 30];
    assert_eq!(at_once(&stage, &wrong).await, vec!["unauthorized"; 30]);
    assert_eq!(stage.looks.swap(0, SeqCst), 1, "a guess is a guess however often it is made");
}

#[tokio::test]
async fn right_logins_wait_for_those_before_them() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let mut right = Vec::new();
    for n in 0..15 {
        let admin = json!({ "k": format!("admin{n}"), "v": { "password": "secret one" } });
        stage.ok(&elena, "PUT", "/_acc/users/admins", admin).await;
        right.push(format!("elena:admin{n}#secret one"));
    }
    assert_eq!(at_once(&stage, &right).await, vec!["ok"; 15]);
}

#[tokio::test]
async fn guesses_at_a_time_are_as_few_as_one_after_the_other() {
    let stage = Stage::new().await;
    stage.account("elena").await;
    let chosen = json!({ "k": "elena", "v": { "secret": "a chosen one" } });
    stage.ok(SYS, "POST", "/_acc/accounts", chosen).await;
    stage.looks.store(0, SeqCst);
    let guesses: Vec<String> = (0..30).map(|n| format!("elena:guess {n}")).collect();
    let told = at_once(&stage, &guesses).await;
    assert_eq!(told.iter().filter(|word| *word == "unauthorized").count(), 10, "{told:?}");
    assert_eq!(told.iter().filter(|word| *word == "too_many_requests").count(), 20, "{told:?}");
    assert_eq!(stage.looks.load(SeqCst), 10);
}

/// What came of a look that began before a change says nothing to who comes after it.
#[tokio::test]
async fn a_login_after_a_change_does_not_join_one_before_it() {
    let stage = Stage::new().await;
    let (elena, _) = stage.account("elena").await;
    let ann = "elena:ann#secret one";
    let get = || Box::pin(stage.call(ann, "GET", "/_data", Value::Null));
    let mut early = get();
    while stage.looks.load(SeqCst) == 0 {
        std::future::poll_fn(|context| {
            assert!(early.as_mut().poll(context).is_pending(), "it takes a while");
            std::task::Poll::Ready(())
        })
        .await;
        tokio::task::yield_now().await;
    }
    let admin = json!({ "k": "ann", "v": { "password": "secret one" } });
    stage.ok(&elena, "PUT", "/_acc/users/admins", admin).await;
    let (early, late) = tokio::join!(early, get());
    assert_eq!((&early["v"], &late["s"]), (&json!("unauthorized"), &json!("ok")));
}

/// Who gives up leaves the look to the next one, and nothing behind.
#[tokio::test]
async fn a_login_that_is_given_up_is_looked_at_by_the_next_one() {
    let stage = Stage::new().await;
    stage.account("elena").await;
    let chosen = json!({ "k": "elena", "v": { "secret": "a chosen one" } });
    stage.ok(SYS, "POST", "/_acc/accounts", chosen).await;
    let get = || Box::pin(stage.call("elena:a chosen one", "GET", "/_data", Value::Null));
    let mut all: Vec<_> = (0..5).map(|_| get()).collect();
    while all.len() > 1 {
        std::future::poll_fn(|context| {
            assert!(all.iter_mut().all(|one| one.as_mut().poll(context).is_pending()));
            std::task::Poll::Ready(())
        })
        .await;
        drop(all.remove(0));
    }
    assert_eq!(all.remove(0).await["s"], "ok");
    assert_eq!(get().await["s"], "ok");
}
