/** What accounts need to know of an application service. */
export interface AppserviceIdentity {
  readonly id: string;
  /** The user of its `sender_localpart`. */
  readonly senderUserId: string;
  /** `rate_limited` of its registration. */
  readonly rateLimited: boolean;
  /** Whether it may act as this local user: one of its `users` namespaces has them, or it is its sender. */
  isInterested(userId: string): boolean;
}

/** Implemented by `appservices/`. */
export interface AppserviceTokens {
  /** Compares in constant time. */
  byToken(asToken: string): AppserviceIdentity | undefined;
  /** The application service that has the user in an exclusive namespace. */
  exclusiveOwner(userId: string): AppserviceIdentity | undefined;
}

/** For a server without application services. */
export const noAppservices: AppserviceTokens = { byToken: () => undefined, exclusiveOwner: () => undefined };
