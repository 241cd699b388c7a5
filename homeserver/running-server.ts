/** A server of one process, or one of several, or who looks after several. */
export interface RunningServer {
  /** Why it cannot go on, once that is so: it is to be started again. */
  readonly failed: Promise<string>;
  /** Reads the certificate again: after it was renewed. */
  reload(): Promise<void>;
  /** Replaces its processes one after the other; `undefined` where it is one. */
  restart?(): Promise<void>;
  /**
   * Answers what is under way, stores what is not stored, closes the database.
   *
   * @param drain whether others go on: clients are sent there first
   */
  close(drain?: boolean): Promise<void>;
}
