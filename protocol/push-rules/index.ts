/** Push rules (spec: client-server API, "Push Notifications"). */
export type { UserContext } from './conditions.ts';
export type { CompiledRules, PushOutcome } from './evaluator.ts';
export { compileRules, evaluate } from './evaluator.ts';
export type { EventView, PushEvent, RoomContext } from './event-view.ts';
export { flattenEvent, needsDisplayNames } from './event-view.ts';
export type { Action, PushCondition, PushRule, RuleKind, Ruleset } from './rules.ts';
export { isRuleKind, RULE_KINDS } from './rules.ts';
export * from './user-rules.ts';
