import {
  bodyMatch,
  type Condition,
  compileCondition,
  containsLocalpart,
  propertyEquals,
  type Test,
  type UserContext,
} from './conditions.ts';
import { DEFAULT_RULES, MASTER_RULE } from './default-rules.ts';
import type { EventView } from './event-view.ts';
import type { Action, DefaultRule, PushRule, RuleKind } from './rules.ts';
import { RULE_KINDS } from './rules.ts';
import { type PushRuleChanges, ruleKey } from './user-rules.ts';

/** What is to be done about an event, for one user. */
export interface PushOutcome {
  /** The event counts as unread and goes to the user's pushers. */
  readonly notify: boolean;
  readonly highlight: boolean;
  /** Of the rule that matched, without the historical ones. */
  readonly actions: readonly Action[];
  /** `undefined` when no rule matched. */
  readonly ruleId: string | undefined;
}

const NOTHING: PushOutcome = { notify: false, highlight: false, actions: [], ruleId: undefined };

/** Matching may take as many steps for one user and event. Only patterns made to be slow come near. */
const STEPS = 20_000_000;

interface CompiledRule {
  /** Their outcome is the same for all users. */
  readonly eventTests: readonly Test[];
  readonly userTests: readonly Test[];
  readonly onlyWithoutMentions: boolean;
  readonly outcome: PushOutcome;
}

/** A user's rules made ready to be evaluated, most important first. Without changes all users share one. */
export class CompiledRules {
  readonly #rules: readonly CompiledRule[];
  /** For the rules that users share: which of them can match the event that was asked for last. */
  readonly #candidates: WeakMap<EventView, CompiledRule[]> | undefined;

  constructor(rules: readonly CompiledRule[], shared: boolean) {
    this.#rules = rules;
    this.#candidates = shared ? new WeakMap() : undefined;
  }

  evaluate(view: EventView, user: UserContext): PushOutcome {
    if (view.sender === user.userId) return NOTHING;
    view.stepsLeft = STEPS;
    if (this.#candidates) {
      for (const rule of this.#candidatesFor(view, this.#candidates))
        if (hold(rule.userTests, view, user)) return rule.outcome;
      return NOTHING;
    }
    for (const rule of this.#rules)
      if (canMatch(rule, view, user) && hold(rule.userTests, view, user)) return rule.outcome;
    return NOTHING;
  }

  #candidatesFor(view: EventView, known: WeakMap<EventView, CompiledRule[]>): CompiledRule[] {
    let candidates = known.get(view);
    if (candidates) return candidates;
    candidates = [];
    for (const rule of this.#rules) {
      if (!canMatch(rule, view, NOBODY)) continue;
      candidates.push(rule);
      if (rule.userTests.length === 0) break;
    }
    known.set(view, candidates);
    return candidates;
  }
}

const NOBODY: UserContext = { userId: '' };

function canMatch(rule: CompiledRule, view: EventView, user: UserContext): boolean {
  return !(rule.onlyWithoutMentions && view.hasMentions) && hold(rule.eventTests, view, user);
}

function hold(tests: readonly Test[], view: EventView, user: UserContext): boolean {
  for (const test of tests) if (!test(view, user)) return false;
  return true;
}

/** What the rules say about an event. Of the user's own events: nothing. */
export function evaluate(rules: CompiledRules, view: EventView, user: UserContext): PushOutcome {
  return rules.evaluate(view, user);
}

let defaults: CompiledRules | undefined;

/** @param changes what the user changed of the predefined rules; `undefined` for nothing */
export function compileRules(changes: PushRuleChanges | undefined): CompiledRules {
  if (changes) return new CompiledRules(inOrder(changes), false);
  defaults ??= new CompiledRules(inOrder(undefined), true);
  return defaults;
}

function inOrder(changes: PushRuleChanges | undefined): CompiledRule[] {
  const rules: CompiledRule[] = [];
  addDefault(rules, 'override', MASTER_RULE, changes);
  for (const kind of RULE_KINDS) {
    for (const rule of changes?.rules[kind] ?? []) if (rule.enabled) rules.push(compileRule(kind, rule));
    for (const rule of DEFAULT_RULES[kind]) addDefault(rules, kind, rule, changes);
  }
  return rules;
}

function addDefault(
  rules: CompiledRule[],
  kind: RuleKind,
  rule: DefaultRule,
  changes: PushRuleChanges | undefined,
): void {
  const key = ruleKey(kind, rule.rule_id);
  if (!(changes?.enabled.get(key) ?? rule.enabled ?? true)) return;
  const conditions = rule.pattern_type ? [containsLocalpart] : (rule.conditions ?? []).map(compileCondition);
  const actions = changes?.actions.get(key) ?? rule.actions;
  rules.push(compiled(conditions, outcomeOf(rule.rule_id, actions), rule.onlyWithoutMentions === true));
}

function compileRule(kind: RuleKind, rule: PushRule): CompiledRule {
  return compiled(conditionsOf(kind, rule), outcomeOf(rule.rule_id, rule.actions), false);
}

function conditionsOf(kind: RuleKind, rule: PushRule): Condition[] {
  switch (kind) {
    case 'content':
      return [bodyMatch(rule.pattern ?? '')];
    case 'room':
      return [propertyEquals('room_id', rule.rule_id)];
    case 'sender':
      return [propertyEquals('sender', rule.rule_id)];
    default:
      return (rule.conditions ?? []).map(compileCondition);
  }
}

function compiled(
  conditions: readonly Condition[],
  outcome: PushOutcome,
  onlyWithoutMentions: boolean,
): CompiledRule {
  return {
    eventTests: conditions.flatMap(({ ofUser, test, eventTest }) => (ofUser ? (eventTest ?? []) : test)),
    userTests: conditions.filter(({ ofUser }) => ofUser).map(({ test }) => test),
    onlyWithoutMentions,
    outcome,
  };
}

function outcomeOf(ruleId: string, all: readonly Action[]): PushOutcome {
  // Spec, "Historical Actions": must be ignored.
  const actions = all.filter((action) => action !== 'dont_notify' && action !== 'coalesce');
  const notify = actions.includes('notify');
  const highlight = actions.some(
    (action) => typeof action === 'object' && action.set_tweak === 'highlight' && action.value !== false,
  );
  return { notify, highlight: notify && highlight, actions, ruleId };
}
