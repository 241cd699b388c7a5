-- What the words of the user directory may be mistyped as: their beginnings with and without one of the letters.
CREATE TABLE user_directory_typos (
  variant text COLLATE "C" NOT NULL,
  user_id text COLLATE "C" NOT NULL,
  PRIMARY KEY (variant, user_id)
);
CREATE INDEX user_directory_typos_by_user ON user_directory_typos (user_id);

-- Users that someone has reported to the administrators of this server.
CREATE TABLE user_reports (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  received_ts bigint NOT NULL,
  reporter text NOT NULL,
  user_id text NOT NULL,
  reason text NOT NULL
);
CREATE INDEX user_reports_by_user ON user_reports (user_id);
