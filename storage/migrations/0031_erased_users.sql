-- Local users who had what they sent erased, and where the stream of events was then.
CREATE TABLE erased_users (
  user_id text PRIMARY KEY,
  pos bigint NOT NULL
);
