-- Which threads users follow (MSC4306).
CREATE TABLE thread_subscriptions (
  user_id text NOT NULL,
  room_id text NOT NULL,
  -- Event id of the thread's root.
  thread text NOT NULL,
  -- false: unsubscribed, kept so that clients hear of it and old mentions do not subscribe the user again.
  subscribed boolean NOT NULL,
  -- A client subscribed the user on account of a mention.
  automatic boolean NOT NULL,
  -- Everything up to this position of the stream of events was there when the user unsubscribed.
  unsubscribed_at bigint,
  -- Position in the stream of account data.
  pos bigint NOT NULL,
  PRIMARY KEY (user_id, room_id, thread)
);
