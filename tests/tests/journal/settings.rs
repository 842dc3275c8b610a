//! The stream is created and kept as the settings say, and errors name the settings that cannot work.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, SubjectTransform};
use journal::{ConnectError, Connection, Ensured, Error, Fitness, Journal, Limits};
use tests::{Nats, NatsOptions, eventually};

use super::{BOUND, limits, log_on, nth, settings};

#[tokio::test]
async fn ensure_creates_updates_and_leaves_alone() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = Journal::connect(&settings(&nats)).await?;
    assert_eq!(journal.identity().await?, None);
    assert_eq!(journal.ensure(&limits()).await?, Ensured::Created);
    assert_eq!(journal.ensure(&limits()).await?, Ensured::Unchanged);
    journal.append(&nth(1)).await?;

    let aged = Limits {
        max_age: Duration::from_hours(1),
        max_bytes: 1 << 20,
        ..limits()
    };
    assert_eq!(
        journal.ensure(&aged).await?,
        Ensured::Updated(vec!["max_age", "max_bytes", "duplicate_window"])
    );
    assert_eq!(journal.ensure(&aged).await?, Ensured::Unchanged);
    let shown = config(&nats).await?;
    assert_eq!(
        shown.duplicate_window,
        Duration::from_hours(1),
        "never longer than the log is kept"
    );
    assert_eq!(
        journal.ensure(&limits()).await?,
        Ensured::Updated(vec!["max_age", "max_bytes", "duplicate_window"])
    );
    assert_eq!(journal.identity().await?.expect("there").messages, 1);
    Ok(())
}

#[tokio::test]
async fn the_stream_refuses_rather_than_drops_and_allows_forgetting() -> anyhow::Result<()> {
    use async_nats::jetstream::stream::StorageType;
    let nats = Nats::start().await?;
    log_on(&nats).await?;
    let config = config(&nats).await?;
    assert_eq!(config.subjects, ["dsync.>"]);
    assert_eq!(
        (config.storage, config.discard),
        (StorageType::File, DiscardPolicy::New)
    );
    assert_eq!(
        (config.max_bytes, config.max_messages, config.num_replicas),
        (-1, -1, 1)
    );
    assert!(config.allow_direct && !config.deny_delete && !config.deny_purge);
    assert_eq!(config.duplicate_window, limits().dedup_window);
    Ok(())
}

/// A limit below the current size removes nothing. The log is full until there is room.
#[tokio::test]
async fn a_lower_size_limit_drops_nothing() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    for n in 1..=50 {
        journal.append(&nth(n)).await?;
    }
    journal
        .ensure(&Limits {
            max_bytes: 1_000,
            ..limits()
        })
        .await?;
    assert_eq!(journal.append(&nth(51)).await, Err(journal::AppendError::Full));
    let identity = journal.identity().await?.expect("there");
    assert_eq!((identity.first_seq, identity.messages), (1, 50));
    Ok(())
}

#[tokio::test]
async fn what_the_operator_set_beside_ours_stays() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let context = async_nats::jetstream::new(async_nats::connect(nats.url()).await?);
    context
        .create_stream(Config {
            name: "DSYNC".to_owned(),
            subjects: vec!["dsync.>".to_owned()],
            description: Some("ours".to_owned()),
            compression: Some(async_nats::jetstream::stream::Compression::S2),
            ..Default::default()
        })
        .await?;
    let journal = Journal::connect(&settings(&nats)).await?;
    assert!(matches!(journal.ensure(&limits()).await?, Ensured::Updated(_)));
    let config = config(&nats).await?;
    assert_eq!(config.description.as_deref(), Some("ours"));
    assert_eq!(
        config.compression,
        Some(async_nats::jetstream::stream::Compression::S2)
    );
    Ok(())
}

/// Settings of newer brokers that this client does not know belong to the operator, too.
#[tokio::test]
async fn settings_this_client_does_not_know_stay_too() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let client = async_nats::connect(nats.url()).await?;
    let newer = r#"{"name":"DSYNC","subjects":["dsync.>"],"storage":"file","discard":"new","allow_direct":true,
        "allow_atomic":true,"allow_msg_ttl":true}"#;
    client
        .request("$JS.API.STREAM.CREATE.DSYNC", newer.into())
        .await?;
    let told = async || {
        let answer = client.request("$JS.API.STREAM.INFO.DSYNC", "".into()).await?;
        let info: serde_json::Value = serde_json::from_slice(&answer.payload)?;
        anyhow::Ok(info["config"].clone())
    };
    let mut expected = told().await?;
    let journal = Journal::connect(&settings(&nats)).await?;
    assert_eq!(
        journal.ensure(&limits()).await?,
        Ensured::Updated(vec!["duplicate_window"])
    );
    expected["duplicate_window"] = u64::try_from(limits().dedup_window.as_nanos())?.into();
    assert_eq!(told().await?, expected);
    Ok(())
}

/// For programs that need a stream, and whose limits apply only if there is none.
#[tokio::test]
async fn a_stream_that_is_there_is_left_as_it_is_by_who_only_makes_missing_ones() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = Journal::connect(&settings(&nats)).await?;
    assert_eq!(journal.create_missing(&limits()).await?, Ensured::Created);
    let other = Limits {
        max_age: Duration::from_hours(1),
        max_bytes: 1 << 20,
        ..limits()
    };
    assert_eq!(journal.create_missing(&other).await?, Ensured::Unchanged);
    assert_eq!(journal.ensure(&limits()).await?, Ensured::Unchanged);
    Ok(())
}

/// A stream created with `deny_delete`, so that no entry can ever be removed. Brokers refuse to change that setting.
async fn made_for_ever(nats: &Nats, discard: DiscardPolicy) -> anyhow::Result<Journal> {
    let context = async_nats::jetstream::new(async_nats::connect(nats.url()).await?);
    context
        .create_stream(Config {
            name: "DSYNC".to_owned(),
            subjects: vec!["dsync.>".to_owned()],
            discard,
            duplicate_window: limits().dedup_window,
            allow_direct: true,
            deny_delete: true,
            ..Default::default()
        })
        .await?;
    Ok(Journal::connect(&settings(nats)).await?)
}

/// Settings that the broker refuses to change are no reason to refuse webhooks that it would store.
#[tokio::test]
async fn a_stream_whose_settings_cannot_be_changed_serves_as_it_is() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = made_for_ever(&nats, DiscardPolicy::New).await?;
    let Ensured::Kept { differing, why } = journal.ensure(&limits()).await? else {
        panic!("the stream was changed")
    };
    assert_eq!(differing, ["deny_delete"]);
    assert!(why.contains("deny"), "{why}");
    journal.append(&nth(1)).await?;
    Ok(())
}

/// A stream that drops its oldest entries when full would lose what it acknowledged.
#[tokio::test]
async fn what_a_broker_never_takes_back_does_not_keep_it_from_taking_the_rest() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = made_for_ever(&nats, DiscardPolicy::Old).await?;
    let aged = Limits {
        max_age: Duration::from_hours(1),
        ..limits()
    };
    let Ensured::Kept { differing, why } = journal.ensure(&aged).await? else {
        panic!("the stream was changed, or left as it is")
    };
    assert_eq!(differing, ["deny_delete"]);
    assert!(why.contains("deny"), "{why}");
    let config = config(&nats).await?;
    assert_eq!(
        (config.discard, config.max_age),
        (DiscardPolicy::New, aged.max_age)
    );
    assert!(config.deny_delete && journal.fitness().await?.is_fit);
    Ok(())
}

/// It takes no entries, and no broker opens it again.
#[tokio::test]
async fn a_sealed_stream_does_not_serve() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = Journal::connect(&settings(&nats)).await?;
    journal.ensure(&limits()).await?;
    let mut sealed = config(&nats).await?;
    sealed.sealed = true;
    let context = async_nats::jetstream::new(async_nats::connect(nats.url()).await?);
    context.update_stream(sealed).await?;
    assert!(!journal.fitness().await?.is_fit);
    let Err(Error::Unfit { differing, .. }) = journal.ensure(&limits()).await else {
        panic!("such a stream is accepted")
    };
    assert!(differing.contains(&"sealed"), "{differing:?}");
    Ok(())
}

/// Neither does one that keeps only the newest entries of each subject, or never acknowledges. Both can be set right.
#[tokio::test]
async fn a_stream_that_keeps_or_confirms_too_little_is_set_right() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let context = async_nats::jetstream::new(async_nats::connect(nats.url()).await?);
    context
        .create_stream(Config {
            name: "DSYNC".to_owned(),
            subjects: vec!["dsync.>".to_owned()],
            discard: DiscardPolicy::New,
            duplicate_window: limits().dedup_window,
            allow_direct: true,
            max_messages_per_subject: 1,
            no_ack: true,
            ..Default::default()
        })
        .await?;
    let journal = Journal::connect(&settings(&nats)).await?;
    assert_eq!(
        journal.ensure(&limits()).await?,
        Ensured::Updated(vec!["max_msgs_per_subject", "no_ack"])
    );
    let config = config(&nats).await?;
    assert_eq!((config.max_messages_per_subject, config.no_ack), (-1, false));
    journal.append(&nth(1)).await?;
    Ok(())
}

/// Nor need one stay that refuses what it should take, or files it elsewhere.
#[tokio::test]
async fn a_stream_that_takes_too_little_or_files_it_elsewhere_is_set_right() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = Journal::connect(&settings(&nats)).await?;
    journal.ensure(&limits()).await?;
    let context = async_nats::jetstream::new(async_nats::connect(nats.url()).await?);
    let edit = async |edit: fn(&mut Config)| {
        let mut config = config(&nats).await?;
        edit(&mut config);
        context.update_stream(config).await?;
        anyhow::Ok(())
    };
    let unedited = config(&nats).await?;
    for (edited, is_fit, names) in [
        (
            (|config| config.max_messages = 1) as fn(&mut Config),
            true,
            &["max_msgs"][..],
        ),
        (|config| config.max_message_size = 10, true, &["max_msg_size"]),
        // Brokers refuse the one without the other.
        (
            |config| (config.max_messages_per_subject, config.discard_new_per_subject) = (1, true),
            false,
            &["max_msgs_per_subject", "discard_new_per_subject"],
        ),
        (
            |config| {
                config.subject_transform = Some(SubjectTransform {
                    source: "dsync.>".to_owned(),
                    destination: "elsewhere.>".to_owned(),
                });
            },
            false,
            &["subject_transform"],
        ),
    ] {
        edit(edited).await?;
        assert_eq!(journal.fitness().await?.is_fit, is_fit, "{names:?}");
        assert_eq!(journal.ensure(&limits()).await?, Ensured::Updated(names.to_vec()));
        assert_eq!(config(&nats).await?, unedited, "{names:?}");
    }
    Ok(())
}

/// A broker leaves what a login may not do unanswered. Returns what a login that may not change the stream finds, after
/// somebody else made this `edit`.
async fn ensured_after(edit: impl FnOnce(&mut Config)) -> anyhow::Result<(Result<Ensured, Error>, Fitness)> {
    let nats = Nats::with(NatsOptions {
        more: vec![
            "accounts { A { jetstream: enabled, users: [ { user: admin, password: a }, { user: ours, password: o, \
             permissions: { publish: { deny: \"$JS.API.STREAM.UPDATE.>\" } } } ] } }"
                .to_owned(),
        ],
        ..NatsOptions::default()
    })
    .await?;
    let admin = Connection {
        url: nats.url_as("admin", "a"),
        ..settings(&nats)
    };
    Journal::connect(&admin).await?.ensure(&limits()).await?;
    let login = async_nats::ConnectOptions::with_user_and_password("admin".to_owned(), "a".to_owned());
    let context = async_nats::jetstream::new(login.connect(nats.url()).await?);
    let mut config = context.get_stream("DSYNC").await?.cached_info().config.clone();
    edit(&mut config);
    context.update_stream(config).await?;
    let ours = Connection {
        url: nats.url_as("ours", "o"),
        ..settings(&nats)
    };
    let ours = Journal::connect(&ours).await?;
    let ensured = ours.ensure(&limits()).await;
    Ok((ensured, ours.fitness().await?))
}

#[tokio::test]
async fn an_unfit_stream_that_may_not_be_changed_is_named_for_what_differs() -> anyhow::Result<()> {
    let (ensured, fitness) = ensured_after(|config| config.discard = DiscardPolicy::Old).await?;
    let Err(error) = ensured else {
        panic!("such a stream is accepted")
    };
    assert_eq!(
        error.to_string(),
        "the stream would lose or refuse entries, because these settings differ and cannot be changed: discard: the \
         log's broker did not answer in time"
    );
    assert!(!fitness.is_fit);
    Ok(())
}

/// It loses nothing.
#[tokio::test]
async fn a_stream_that_takes_other_subjects_too_serves() -> anyhow::Result<()> {
    let (ensured, fitness) = ensured_after(|config| config.subjects.push("more.>".to_owned())).await?;
    let Ensured::Kept { differing, .. } = ensured? else {
        panic!("the stream was changed")
    };
    assert!(differing == ["subjects"] && fitness.is_fit);
    let (ensured, fitness) = ensured_after(|config| config.subjects = vec!["dsync.*".to_owned()]).await?;
    assert!(matches!(ensured, Err(Error::Unfit { .. })) && !fitness.is_fit);
    Ok(())
}

#[tokio::test]
async fn several_programs_may_ensure_at_once() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let mut journals = Vec::new();
    for _ in 0..6 {
        journals.push(Journal::connect(&settings(&nats)).await?);
    }
    let limits = limits();
    futures_util::future::try_join_all(journals.iter().map(|journal| journal.ensure(&limits))).await?;
    Ok(())
}

#[tokio::test]
async fn what_the_broker_does_not_take_is_refused_in_its_words() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = Journal::connect(&settings(&nats)).await?;
    let refused = journal
        .ensure(&Limits {
            replicas: 3,
            ..limits()
        })
        .await;
    let Err(Error::Refused {
        code: 10074,
        description,
    }) = refused
    else {
        panic!("{refused:?}")
    };
    assert_eq!(description, "replicas > 1 not supported in non-clustered mode");
    Ok(())
}

#[tokio::test]
async fn a_login_that_is_refused_is_unavailable_not_shown() -> anyhow::Result<()> {
    let login = Some(("dsync".to_owned(), "right".to_owned()));
    let nats = Nats::with(NatsOptions {
        login,
        ..NatsOptions::default()
    })
    .await?;
    let right = Journal::connect(&settings(&nats)).await?;
    right.ensure(&limits()).await?;

    let wrong = Connection {
        url: nats.url().replace("right", "wrong-password"),
        ..settings(&nats)
    };
    let wrong = Journal::connect(&wrong).await?;
    let error = wrong.ready().await.expect_err("refused");
    assert!(matches!(error, Error::Unavailable(_)));
    assert!(!format!("{error:?} {error}").contains("wrong-password"));
    Ok(())
}

#[tokio::test]
async fn several_urls_of_which_one_answers_are_enough() -> anyhow::Result<()> {
    let absent = Nats::absent(NatsOptions::default())?;
    let nats = Nats::start().await?;
    let both = Connection {
        url: format!("{} , {}", absent.url(), nats.url()),
        ..settings(&nats)
    };
    let journal = Journal::connect(&both).await?;
    eventually(BOUND, async || Ok(journal.ensure(&limits()).await?)).await?;
    Ok(())
}

#[tokio::test]
async fn settings_that_can_never_work_are_told_at_once_and_not_repeated() {
    let good = Connection {
        url: "nats://127.0.0.1:4222".to_owned(),
        creds: None,
        ca: None,
        stream: "DSYNC".to_owned(),
        name: "test".to_owned(),
    };
    let bad_url = Connection {
        url: "nats://user:password@:::/".to_owned(),
        ..good.clone()
    };
    let error = Journal::connect(&bad_url).await.err().expect("refused");
    assert!(matches!(error, ConnectError::Url));
    assert!(!format!("{error:?} {error}").contains("password"));

    let bad_stream = Connection {
        stream: "my.stream".to_owned(),
        ..good.clone()
    };
    assert!(matches!(
        Journal::connect(&bad_stream).await,
        Err(ConnectError::StreamName)
    ));

    let no_file = Connection {
        creds: Some("/nowhere/user.creds".into()),
        ..good
    };
    assert!(matches!(
        Journal::connect(&no_file).await,
        Err(ConnectError::Credentials(_))
    ));
}

async fn config(nats: &Nats) -> anyhow::Result<Config> {
    let context = async_nats::jetstream::new(async_nats::connect(nats.url()).await?);
    Ok(context.get_stream("DSYNC").await?.cached_info().config.clone())
}
