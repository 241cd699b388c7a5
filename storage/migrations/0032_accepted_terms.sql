-- Which versions of which documents users accepted when they registered.
CREATE TABLE accepted_terms (
  user_id text NOT NULL,
  policy text NOT NULL,
  version text NOT NULL,
  accepted_ts bigint NOT NULL,
  PRIMARY KEY (user_id, policy, version)
);
