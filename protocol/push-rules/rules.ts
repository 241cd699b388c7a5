import type { JsonValue } from '../event.ts';

/** In the order in which they are checked. */
export const RULE_KINDS = ['override', 'content', 'postcontent', 'room', 'sender', 'underride'] as const;
export type RuleKind = (typeof RULE_KINDS)[number];

export type Action = string | { set_tweak: string; value?: JsonValue };

/** As clients send it; of unknown kinds nothing else is known. */
export interface PushCondition {
  readonly kind: string;
  readonly key?: JsonValue;
  readonly pattern?: JsonValue;
  readonly is?: JsonValue;
  readonly value?: JsonValue;
  readonly subscribed?: JsonValue;
}

/** A rule as clients see it. */
export interface PushRule {
  readonly rule_id: string;
  readonly default: boolean;
  readonly enabled: boolean;
  readonly actions: readonly Action[];
  /** Of `override` and `underride` rules. */
  readonly conditions?: readonly PushCondition[];
  /** Of `content` rules. */
  readonly pattern?: string;
}

/** A condition of a predefined rule: where a value is the user's own, its kind stands instead. */
export interface DefaultCondition extends PushCondition {
  readonly pattern_type?: 'user_id';
  readonly value_type?: 'user_id';
}

/** A predefined rule, for all users. */
export interface DefaultRule {
  readonly rule_id: string;
  /** `true` unless said otherwise. */
  readonly enabled?: boolean;
  readonly actions: readonly Action[];
  readonly conditions?: readonly DefaultCondition[];
  readonly pattern_type?: 'user_localpart';
  /** Counts only for events that don't say whom they mention (spec v1.7 to v1.16: "Default Override Rules"). */
  readonly onlyWithoutMentions?: boolean;
}

/** Rules by kind, most important first. */
export type Ruleset<Rule = PushRule> = Record<RuleKind, readonly Rule[]>;

export function isRuleKind(kind: string): kind is RuleKind {
  return (RULE_KINDS as readonly string[]).includes(kind);
}
